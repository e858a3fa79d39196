"""gRPC's own health service, for load balancers and orchestrators."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import NotFoundError
from fairlead.serve.inference.grpc.call import Call
from fairlead.serve.inference.grpc.schema import INFERENCE, schema
from fairlead.serve.inference.grpc.status import CallError, Code

if TYPE_CHECKING:
    from fairlead.serve.inference.service import Service

__all__ = ["HEALTH", "HealthMethods"]

HEALTH = "grpc.health.v1.Health"

_SERVING, _NOT_SERVING, _UNKNOWN = 1, 2, 3
_LOOK_S = 0.2


class HealthMethods:
    """Says of the server, of a service, or of a model whether it serves."""

    def __init__(self, service: Service) -> None:
        """Look at a service."""
        self._service = service
        messages = schema().messages
        self._request = messages["grpc.health.v1.HealthCheckRequest"]
        self._response = messages["grpc.health.v1.HealthCheckResponse"]

    def check(self, call: Call, raw: bytes) -> None:
        """Answer once; never raises."""
        state = self._state(self._name(raw))
        if state == _UNKNOWN:
            call.fail(CallError(Code.NOT_FOUND, "there is no such service or model"))
        else:
            call.respond(self._response(status=state).SerializeToString())

    async def watch(self, call: Call) -> None:
        """Answer, and again whenever the answer changes."""
        raw = await call.next()
        name = self._name(raw or b"")
        told: Any = None
        while not call.is_over:
            state = self._state(name)
            if state != told:
                call.send(self._response(status=state).SerializeToString())
                told = state
            await asyncio.sleep(_LOOK_S)

    def _name(self, raw: bytes) -> str:
        return str(self._request.FromString(raw).service)

    def _state(self, name: str) -> int:
        if name in {"", INFERENCE, HEALTH}:
            return _SERVING if self._service.is_ready else _NOT_SERVING
        try:
            is_ready = self._service.repository.is_ready(name)
        except NotFoundError:
            return _UNKNOWN
        return _SERVING if is_ready and not self._service.is_draining else _NOT_SERVING
