"""Everything about a running server, in one place: start it, find it, talk to it, stop it."""

from __future__ import annotations

from fairlead.backends.endpoint_client import (
    EndpointClient,
    InferResult,
    OutcomePage,
    RequestOutcome,
)
from fairlead.backends.server_process import ServerHandle, check_port, spawn_server
from fairlead.backends.services import ServiceRecord, find_endpoint, list_services, stop_service

__all__ = [
    "EndpointClient",
    "InferResult",
    "OutcomePage",
    "RequestOutcome",
    "ServerHandle",
    "ServiceRecord",
    "check_port",
    "find_endpoint",
    "list_services",
    "spawn_server",
    "stop_service",
]
