"""Listens for gRPC on the event loop that also serves HTTP, and stops without losing a call."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import AccessError
from fairlead.serve.inference.accepting import Acceptor, OpenCounts, listen
from fairlead.serve.inference.grpc.call import Call, OnMessage
from fairlead.serve.inference.grpc.connection import Connection
from fairlead.serve.inference.grpc.doorman import Doorman
from fairlead.serve.inference.grpc.health import HEALTH, HealthMethods
from fairlead.serve.inference.grpc.limits import GrpcLimits
from fairlead.serve.inference.grpc.methods import InferenceMethods
from fairlead.serve.inference.grpc.reflection import REFLECTIONS, Reflection
from fairlead.serve.inference.grpc.schema import INFERENCE
from fairlead.serve.inference.grpc.status import CallError, Code, code_of, explain

if TYPE_CHECKING:
    from fairlead.serve.inference.service import Service

__all__ = ["GrpcServer"]

_log = logging.getLogger(__name__)
_POLL_S = 0.005
_GRACE_S = 0.1
"""How long a server that stops still takes what was on its way when it was told to."""

Converse = Callable[[Call], Awaitable[None]]
"""Answers a call that may hold several messages."""

_NOT_OFFERED = {
    "TraceSetting": "requests carry `traceparent`; there is no trace of their own to set",
    "LogSettings": "the log is configured when the server starts",
    "SystemSharedMemoryStatus": "tensors travel in messages, not in shared memory",
    "SystemSharedMemoryRegister": "tensors travel in messages, not in shared memory",
    "SystemSharedMemoryUnregister": "tensors travel in messages, not in shared memory",
    "CudaSharedMemoryStatus": "tensors travel in messages, not in shared memory",
    "CudaSharedMemoryRegister": "tensors travel in messages, not in shared memory",
    "CudaSharedMemoryUnregister": "tensors travel in messages, not in shared memory",
}


class GrpcServer:
    """Serves gRPC on sockets that are already bound; lives in one event loop."""

    def __init__(self, service: Service, limits: GrpcLimits | None = None) -> None:
        """Prepare to serve.

        Args:
            service: What is served.
            limits: What clients may ask of a connection.

        Raises:
            MissingExtraError: `protobuf` is not installed.
        """
        self._limits = limits or GrpcLimits()
        self.connections: set[Connection] = set()
        self._servers: list[asyncio.Server | Acceptor] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._doorman = Doorman(service)
        methods = InferenceMethods(service, self._doorman, self._spawn)
        health = HealthMethods(service)
        self._turns = methods.turns
        self._unary: dict[str, OnMessage] = {**methods.table(), f"/{HEALTH}/Check": health.check}
        self._streaming: dict[str, Converse] = {
            f"/{INFERENCE}/ModelStreamInfer": methods.stream,
            f"/{HEALTH}/Watch": health.watch,
            **{f"/{name}/ServerReflectionInfo": Reflection(name).answer for name in REFLECTIONS},
        }

    async def start(
        self,
        sockets: Sequence[socket.socket],
        context: ssl.SSLContext | None = None,
        counts: OpenCounts | None = None,
    ) -> None:
        """Listen on sockets; with a context, over TLS; with counts, in turn with other workers."""
        self._servers += await listen(
            sockets,
            self._connection,
            lambda: len(self.connections),
            context=context,
            counts=counts,
            handshake_timeout_s=self._limits.stall_s,
        )

    def _connection(self) -> Connection:
        return Connection(self._begin, self._limits, self.connections, self._turns.serve_lone)

    async def drain(self, timeout_s: float) -> None:
        """Stop to listen, answer what is under way, and close every connection.

        Args:
            timeout_s: Longest time for that, in seconds; what is left then is cut off.
        """
        until = perf_counter() + timeout_s
        await asyncio.sleep(min(_GRACE_S, timeout_s))
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.drain()
        while self.connections and perf_counter() < until:
            await asyncio.sleep(_POLL_S)
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()

    def _begin(self, call: Call) -> OnMessage | None:
        """Return who takes the message of a call, or let it be answered by a task.

        Raises:
            CallError: There is no such method, or the caller shows no credentials.
        """
        path = call.head.path
        unary, converse = self._unary.get(path), self._streaming.get(path)
        if unary is None and converse is None:
            raise CallError(Code.UNIMPLEMENTED, _why_not(path))
        try:
            self._doorman.check_shown(call)
        except AccessError as exc:
            raise CallError(code_of(exc), explain(exc)) from exc
        if converse is not None:
            call.on_gone = self._spawn(self._converse(call, converse)).cancel
        return unary

    async def _converse(self, call: Call, converse: Converse) -> None:
        try:
            async with asyncio.timeout(call.head.timeout_s):
                await converse(call)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            if code_of(exc) == Code.INTERNAL:
                _log.error("a call of %s failed", call.head.path, exc_info=exc)
            call.fail(exc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _why_not(path: str) -> str:
    reason = _NOT_OFFERED.get(path.removeprefix(f"/{INFERENCE}/"))
    return f"there is no method {path[:200]}" + (f": {reason}" if reason else "")
