"""What a guard is asked and what it answers; plain values, no transport."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ANYONE", "MAY_PROBE", "Caller", "GuardedRequest"]


class GuardedRequest(NamedTuple):
    """What a transport knows of a request before it reads the body.

    Attributes:
        method: HTTP method, or `POST` for a gRPC call.
        path: Path without the query, percent-decoded; for gRPC the full method name.
        authorization: The header `Authorization`, or None.
        api_key: The header `X-API-Key` (gRPC metadata `x-api-key`), or None.
        peer: Address of the other side without the port, for example `127.0.0.1`.
        certificate_subject: Common name of the client's verified certificate, or None.
        model: Model that it asks for; None for the default one, or where no model is meant.
        is_admin: Whether it changes or reveals how the server is run. Paths that are known to
            do so are taken for such whatever this says.
        origin: The header `Origin`, which browsers send for pages of other servers, or None.
    """

    method: str
    path: str
    authorization: str | None = None
    api_key: str | None = None
    peer: str = ""
    certificate_subject: str | None = None
    model: str | None = None
    is_admin: bool = False
    origin: str | None = None


class Caller(NamedTuple):
    """Who asks, and what it may.

    Attributes:
        name: Name of the key, subject of the token or certificate; never a secret.
        may_admin: Whether it may change how the server is run.
        models: Models that it may ask; None for all.
        call: Id of a change that was written down before it is made, or "".
    """

    name: str
    may_admin: bool = False
    models: frozenset[str] | None = None
    call: str = ""

    def may_ask(self, model: str) -> bool:
        """Return whether it may ask this model."""
        return self.models is None or model in self.models


MAY_PROBE = frozenset({"", "service"})
"""Names of callers whose requests may leave no trace in the log: the service's own commands, and
whoever asks a server that knows nobody."""

ANYONE = Caller("")
"""The caller of a server that asks for no credentials."""
