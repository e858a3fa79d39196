"""Listens, keeps time, and stops without losing a request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from time import perf_counter

from fairlead.serve.inference.accepting import Acceptor, OpenCounts, listen
from fairlead.serve.inference.http.connection import Connection
from fairlead.serve.inference.http.exchange import Exchange, Sender
from fairlead.serve.inference.http.head import Head, HttpError
from fairlead.serve.inference.http.known_heads import KnownHeads
from fairlead.serve.inference.http.limits import HttpLimits
from fairlead.serve.inference.http.wire import Wire

__all__ = ["HttpServer"]

_SWEEP_S = 1.0
_GRACE_S = 0.1
"""How long a server that stops still takes what was on its way when it was told to."""
_POLL_S = 0.005


class HttpServer:
    """Serves HTTP/1.1 on sockets that are already bound; lives in one event loop.

    Attributes:
        dispatch: Answers a complete request, now or later; never raises.
        limits: What clients may ask of a connection.
        wire: Writes the heads of answers.
        heads: Heads of requests that came before.
        connections: The clients there are.
        buffered_bytes: Bodies that are held at the moment.
        screen: Says before a large body comes why it is not welcome, or None.
        is_draining: Whether every answer shall be the last of its connection.
    """

    def __init__(
        self,
        dispatch: Callable[[Exchange], None],
        limits: HttpLimits,
        *,
        on_fault: Callable[[int], object] = lambda _: None,
        screen: Callable[[Head, Sender], HttpError | None] = lambda *_: None,
    ) -> None:
        """Prepare to serve.

        Args:
            dispatch: Answers a complete request, now or later; must not raise.
            limits: What clients may ask of a connection.
            on_fault: Hears the status of each request that HTTP itself forbids.
            screen: Says before a large body comes why it is not welcome, or None.
        """
        self.dispatch = dispatch
        self.limits = limits
        self.wire = Wire()
        self.heads = KnownHeads()
        self.connections: set[Connection] = set()
        self.buffered_bytes = 0
        self.is_draining = False
        self.count_fault = on_fault
        self.screen = screen
        self._servers: list[asyncio.Server | Acceptor] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(
        self,
        sockets: Sequence[socket.socket],
        context: ssl.SSLContext | None = None,
        counts: OpenCounts | None = None,
    ) -> None:
        """Listen on sockets; with a context, over TLS; with counts, in turn with other workers."""
        self._servers += await listen(
            sockets,
            lambda: Connection(self),
            lambda: len(self.connections),
            context=context,
            counts=counts,
            handshake_timeout_s=self.limits.header_timeout_s,
        )
        self._sweep(asyncio.get_running_loop())

    async def drain(self, timeout_s: float) -> None:
        """Stop to listen, answer what is under way, and close every connection.

        Args:
            timeout_s: Longest time for that, in seconds; what is left then is cut off.
        """
        until = perf_counter() + timeout_s
        self.is_draining = True
        await asyncio.sleep(min(_GRACE_S, timeout_s))
        for server in self._servers:
            server.close()
        while self.connections and perf_counter() < until:
            for connection in list(self.connections):
                connection.close_when_idle()
            await asyncio.sleep(_POLL_S)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wire.tick()
        now = perf_counter()
        for connection in list(self.connections):
            connection.sweep(now)
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep, loop)
