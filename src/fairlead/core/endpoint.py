"""A running server, as others see it."""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.core.values import Value

__all__ = ["Endpoint", "TrafficSplit"]


class Endpoint(Value):
    """Where a service answers, and what is behind it."""

    service: str
    """Name of the service, also the model name of the Open Inference Protocol."""
    url: str
    """Base URL, for example `http://127.0.0.1:8080`."""
    pid: int
    """Process id of the server."""
    arms: dict[str, str]
    """Arm (`baseline`, `candidate`) → bundle digest."""
    bundles: Mapping[str, str] = {}
    """Arm → directory of its bundle on the machine that serves."""
    grpc: str | None = None
    """Address for gRPC, for example `127.0.0.1:8081`; None where it is not served."""
    certificate: str | None = None
    """PEM file of the server's own certificate where it speaks TLS, for clients on its machine."""
    client_certificate: str | None = None
    """PEM file of a key and certificate that such clients show where the server requires one."""


class TrafficSplit(Value):
    """Share of the requests each arm gets; the shares add up to 1."""

    weights: dict[str, float]
    shadow: str | None = None
    """Arm that gets a copy of every request, its answers unheard."""
