"""One connection: requests served one after the other, answers sent in their order."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.head import Head, HttpError
from fairlead.serve.inference.http.receiver import Receiver
from fairlead.serve.inference.http.surroundings import Surroundings
from fairlead.serve.inference.http.wire import CONTINUE, JSON, problem_bytes
from fairlead.serve.inference.security.certificate_names import certificate_name

__all__ = ["Connection"]

_ONE_WRITE_BYTES = 64 << 10
_LINGER_IDLE_S = 2.0
_PROBES_AFTER_S = (0.05, 0.2, 1.0)
_NO_HEAD = Head("GET", b"", [], is_old=False)


class Connection(asyncio.Protocol):
    """Serves one client."""

    def __init__(self, server: Surroundings) -> None:
        """Prepare for a client."""
        self._server = server
        self._limits = server.limits
        self._receiver = Receiver(self, server)
        self._requests = self._receiver.requests
        self._transport: Any = None
        self._active: Exchange | None = None
        self._at = perf_counter()
        self._lingering_since: float | None = None
        self._is_advancing = False
        self._is_refused = False
        self._is_read_paused = False
        self._blocked_at: float | None = None
        self._blocked_bytes = 0
        self._drained: asyncio.Future[None] | None = None
        self.peer = ""

    @property
    def certificate_subject(self) -> str | None:
        """Common name of the client's verified certificate, or None."""
        transport = self._transport
        return None if transport is None else certificate_name(transport.get_extra_info("peercert"))

    @property
    def is_alone(self) -> bool:
        """Whether no other client is connected."""
        return len(self._server.connections) == 1

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self._active is None and self._is_free()

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of a client."""
        self._transport = transport
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) else ""
        connections = self._server.connections
        connections.add(self)
        if len(connections) > self._limits.max_connections:
            self._refuse(
                HttpError(
                    503,
                    f"{self._limits.max_connections} clients are connected, as many as may be",
                    "come again later",
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio)
        """Forget everything that nobody waits for any more."""
        self._transport = None
        self._server.connections.discard(self)
        self._receiver.close()
        gone, self._active = self._active, None
        self._wake()
        if gone is not None and gone.on_gone is not None:
            gone.on_gone()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and serve what is complete."""
        self._at = now = perf_counter()
        receiver = self._receiver
        if receiver.is_ended:
            return
        if self._active is None and not self._requests and self._blocked_at is None:
            exchange = receiver.whole(data, now)
            if exchange is not None:
                self._active = exchange
                self._server.dispatch(exchange)
                return
        receiver.feed(data, now)
        self._advance()
        if receiver.fault is not None:
            self._refuse(receiver.fault)

    def eof_received(self) -> bool:
        """Keep the other direction open for what is still to be answered."""
        last = self._requests[-1] if self._requests else self._active
        if last is None:
            return False
        self._receiver.is_ended = True
        last.is_last = True
        if self._transport.get_extra_info("sslcontext") is not None:
            return False
        for after_s in _PROBES_AFTER_S:
            asyncio.get_running_loop().call_later(after_s, self._probe)
        return True

    def _probe(self) -> None:
        """Find out whether a client that sends no more still listens.

        Whoever only stopped to send reads over an interim answer; the system of one that has gone
        resets the connection, and what it asked for need not be run.
        """
        waiting = self._active
        if waiting is None or waiting.is_answered or self._transport is None:
            return
        if waiting.head is not _NO_HEAD and not waiting.head.is_old:
            self._transport.write(CONTINUE)

    def pause_writing(self) -> None:
        """Wait for a client that does not read its answers."""
        self._blocked_at = perf_counter()
        self._blocked_bytes = self._transport.get_write_buffer_size()
        self._pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked_at = None
        self._wake()
        self._advance()

    # What exchanges say.

    def awaits(self, exchange: Exchange) -> bool:
        """Whether the client is there and waits for the answer to an exchange."""
        return self._active is exchange

    def send(self, exchange: Exchange, status: int, body: bytes, headers: bytes) -> None:
        """Send a whole answer in one write."""
        if self._active is not exchange:
            return
        is_last = exchange.is_last or (self._server.is_draining and self._is_free())
        asked = exchange.head
        wire = self._server.wire
        if not is_last and not asked.is_old and status == 200 and asked.method != "HEAD":
            head = b"%b%bcontent-length: %d\r\n\r\n" % (wire.ok, headers, len(body))
        else:
            size = len(body)
            head = wire.head(status, size, headers, is_last=is_last, is_old=asked.is_old)
            if asked.method == "HEAD":
                body = b""
        if len(body) < _ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self._conclude(exchange, is_last=is_last)

    def begin_stream(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """Send the head of an answer that follows piece by piece."""
        if self._active is exchange:
            old = exchange.head.is_old
            is_last = self._server.is_draining and self._is_free()
            exchange.is_last = exchange.is_last or is_last or old
            self._transport.write(
                self._server.wire.stream_head(status, headers, is_last=exchange.is_last, is_old=old)
            )

    def push(self, exchange: Exchange, piece: bytes) -> bool:
        """Send a piece; return whether more may follow at once."""
        if self._active is exchange and piece:
            if not exchange.head.is_old:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            self._transport.write(piece)
        return self._blocked_at is None

    def finish_stream(self, exchange: Exchange) -> None:
        """End an answer that was sent piece by piece."""
        if self._active is exchange:
            if not exchange.head.is_old:
                self._transport.write(b"0\r\n\r\n")
            self._conclude(exchange, is_last=exchange.is_last)

    async def drained(self, exchange: Exchange) -> None:
        """Wait until the client has read enough; see `Exchange.drained`."""
        while self._active is exchange and self._blocked_at is not None:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        if self._active is not exchange:
            raise ConnectionResetError("the client went away")

    def release(self, size: int) -> None:
        """Give back the memory of a body that nobody will read."""
        self._receiver.release(size)

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    # What the server asks for.

    def sweep(self, now: float) -> None:
        """Close the connection when its client is slower than the limits allow."""
        if self._transport is None:
            return
        if self._lingering_since is not None:
            self._sweep_lingering(now, self._lingering_since)
        elif self._blocked_at is not None:
            self._sweep_blocked(now, self._blocked_at)
        elif self.is_idle:
            if now - self._at > self._limits.keep_alive_s:
                self._transport.close()
        elif not self._is_read_paused:
            fault = self._receiver.lateness(now)
            if fault is not None:
                self._refuse(fault)

    def close_when_idle(self) -> None:
        """Close now if nothing is under way; otherwise behind the last answer."""
        if self._transport is not None and self.is_idle and self._lingering_since is None:
            self._transport.close()

    # The rest.

    def _is_free(self) -> bool:
        """Whether nothing is to be answered behind the active exchange."""
        return not self._requests and self._receiver.is_between

    def _conclude(self, exchange: Exchange, *, is_last: bool) -> None:
        receiver = self._receiver
        receiver.release(len(exchange.body))
        self._active = None
        self._at = perf_counter()
        if not is_last:
            if self._requests or self._is_read_paused or receiver.owes_continue:
                self._advance()
        elif not self._is_refused:
            self._transport.close()
        else:
            # Closing with unread bytes would take the answer away from the client.
            self._lingering_since = self._at
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def _advance(self) -> None:
        """Serve what waits, one after the other; answers given at once do not pile up calls."""
        if self._is_advancing:
            return
        self._is_advancing = True
        while self._requests and self._active is None and self._blocked_at is None:
            self._active = exchange = self._requests.popleft()
            if exchange.head is _NO_HEAD:
                self._answer_fault(exchange)
            else:
                self._server.dispatch(exchange)
        self._is_advancing = False
        if self._receiver.owes_continue:
            self._permit()
        if len(self._requests) >= self._limits.max_pipelined:
            self._pause_reading()
        elif self._is_read_paused and self._blocked_at is None and self._transport is not None:
            self._is_read_paused = False
            self._transport.resume_reading()

    def _permit(self) -> None:
        """Let the client send the body it announced, once everything before it is answered."""
        if self._active is None and not self._requests and self._transport is not None:
            self._receiver.owes_continue = False
            self._transport.write(CONTINUE)

    def _pause_reading(self) -> None:
        if not self._is_read_paused and self._transport is not None:
            self._is_read_paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _refuse(self, fault: HttpError) -> None:
        """Answer a fault behind everything that came before it, and listen no more."""
        self._receiver.fault = fault
        self._receiver.stop()
        self._is_refused = True
        exchange = Exchange(self, _NO_HEAD)
        exchange.is_last = True
        self._requests.append(exchange)
        self._advance()

    def _answer_fault(self, exchange: Exchange) -> None:
        fault = self._receiver.fault
        if fault is not None:
            self._server.count_fault(fault.status)
            more = b"retry-after: 1\r\n" if fault.status == 503 else b""
            exchange.answer(fault.status, problem_bytes(fault.message, fault.hint), JSON + more)

    def _sweep_lingering(self, now: float, since: float) -> None:
        if now - self._at > _LINGER_IDLE_S or now - since > self._limits.linger_s:
            self.abort()

    def _sweep_blocked(self, now: float, since: float) -> None:
        spent_s = now - since
        if spent_s <= self._limits.write_timeout_s:
            return
        left = self._transport.get_write_buffer_size()
        if self._blocked_bytes - left < spent_s * self._limits.min_body_rate:
            self.abort()
        else:
            self._blocked_at, self._blocked_bytes = now, left
