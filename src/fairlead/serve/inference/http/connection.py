"""One connection: bytes in, complete requests out, answers back in order."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httptools

from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.head import Head, Headers, HttpError, check_framing
from fairlead.serve.inference.http.wire import CONTINUE, JSON, problem_bytes
from fairlead.serve.inference.security.certificate_names import certificate_name

if TYPE_CHECKING:
    from fairlead.serve.inference.http.server import HttpServer

__all__ = ["Connection"]

_ONE_WRITE_BYTES = 64 << 10
_LINGER_IDLE_S = 2.0
_NO_HEAD = Head("GET", b"", [], is_old=False)
_NOTHING, _HEAD, _BODY = range(3)
"""What is being received."""
_LONG_HEAD = HttpError(431, "the request has too many or too long headers", "send fewer headers")
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")}


class Connection(asyncio.Protocol):
    """Receives requests of one client and sends the answers in their order.

    The parser hands over what it finds through the methods `on_…`; they never raise, but note a
    fault, which is answered behind everything that came before it.
    """

    def __init__(self, server: HttpServer) -> None:
        """Prepare for a client."""
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._queue: deque[Exchange] = deque()
        self._active: Exchange | None = None
        self._coming: Exchange | None = None
        self._fault: HttpError | None = None
        self._stage = _NOTHING
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._chunk_bytes = 0
        self._parts: list[bytes] = []
        self._received = 0
        self._held = 0
        self._begun_at = 0.0
        self._at = perf_counter()
        self._is_ended = False
        self._is_lingering = False
        self._is_advancing = False
        self._owes_continue = False
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
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self._active is None and not self._queue and self._stage == _NOTHING

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
                HttpError(503, f"{len(connections) - 1} clients are connected", "come again later")
            )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio)
        """Forget everything that nobody waits for any more."""
        self._transport = None
        self._server.connections.discard(self)
        self._server.buffered_bytes -= self._held
        self._held = 0
        self._queue.clear()
        self._wake()
        gone, self._active = self._active, None
        if gone is not None and gone.on_gone is not None:
            gone.on_gone()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._at = perf_counter()
        if self._is_ended:
            return
        self._chunk_bytes = len(data)
        unfinished = self._headers if self._stage == _HEAD else None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A switch of protocols is not on offer: the request was answered as it is.
            self._is_ended = True
        except httptools.HttpParserError as exc:
            self._note(_fault_of(exc))
        if self._stage == _HEAD and self._headers is unfinished:
            # All of it belongs to one head, perhaps to one field that never ends.
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_header_bytes:
                self._note(_LONG_HEAD)
        if self._fault is not None:
            self._refuse(self._fault)

    def eof_received(self) -> bool:
        """Keep the other direction open for what is still to be answered."""
        if self._active is None and not self._queue:
            return False
        self._is_ended = True
        (self._queue[-1] if self._queue else self._active).is_last = True  # type: ignore[union-attr]
        return self._transport.get_extra_info("sslcontext") is None

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

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._fault is None:
            self._stage = _HEAD
            self._begun_at = self._at
            self._target = b""
            self._headers = []
            self._head_bytes = 0

    def on_url(self, target: bytes) -> None:
        """Take a part of the request target."""
        self._target += target
        if len(self._target) > self._limits.max_target_bytes:
            self._note(HttpError(414, "the request target is too long", "use a shorter address"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; those behind a chunked body are left out."""
        if self._stage == _HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide from the head whether the body is welcome."""
        if self._fault is not None:
            return
        self._check_head()
        version = self._parser.get_http_version()
        word = self._parser.get_method()
        method = _METHODS.get(word) or word.decode("latin-1")
        head = Head(method, self._target, self._headers, is_old=version != "1.1")
        self._coming = Exchange(self, head)
        self._stage = _BODY
        self._parts = []
        self._received = 0
        try:
            length, waits = check_framing(head, version)
        except HttpError as fault:
            self._note(fault)
            return
        if length is not None and length > self._limits.max_body_bytes:
            self._note(too_large(self._limits.max_body_bytes))
        elif waits and length != 0:
            self._owes_continue = True
            self._permit()

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        if self._fault is not None:
            return
        self._parts.append(part)
        size = len(part)
        self._received += size
        self._held += size
        self._server.buffered_bytes += size
        if self._received > self._limits.max_body_bytes:
            self._note(too_large(self._limits.max_body_bytes))
        elif self._server.buffered_bytes > self._limits.max_buffered_bytes:
            self._note(HttpError(503, "the server holds too many bodies", "send it again in 1 s"))

    def on_message_complete(self) -> None:
        """Hand a whole request on, once its turn has come."""
        coming = self._coming
        if self._fault is not None or coming is None:
            return
        self._coming = None
        self._stage = _NOTHING
        self._owes_continue = False
        parts, self._parts = self._parts, []
        coming.body = parts[0] if len(parts) == 1 else b"".join(parts)
        coming.arrived = self._at
        if not self._parser.should_keep_alive() or self._parser.should_upgrade():
            coming.is_last = self._is_ended = True
        self._queue.append(coming)
        self._advance()

    # What exchanges say.

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

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    # What the server asks for.

    def sweep(self, now: float) -> None:
        """Close the connection when its client is slower than the limits allow."""
        limits = self._limits
        if self._transport is None:
            return
        if self._is_lingering:
            is_quiet = now - self._at > _LINGER_IDLE_S
            if is_quiet or now - self._begun_at > limits.linger_s:
                self.abort()
        elif self._blocked_at is not None:
            self._sweep_blocked(now, self._blocked_at)
        elif self._stage == _HEAD and now - self._begun_at > limits.header_timeout_s:
            self._refuse(HttpError(408, "the headers took too long", "send them at once"))
        elif self._stage == _BODY and self._is_starving(now):
            self._refuse(HttpError(408, "the body came too slowly", "send it faster, or in parts"))
        elif self.is_idle and now - self._at > limits.keep_alive_s:
            self._transport.close()

    def close_when_idle(self) -> None:
        """Close now if nothing is under way; otherwise behind the last answer."""
        if self._transport is not None and self.is_idle:
            self._transport.close()

    # The rest.

    def _is_free(self) -> bool:
        """Whether nothing is to be answered behind the active exchange."""
        return not self._queue and self._stage == _NOTHING

    def _conclude(self, exchange: Exchange, *, is_last: bool) -> None:
        size = len(exchange.body)
        self._held -= size
        self._server.buffered_bytes -= size
        self._active = None
        self._at = perf_counter()
        if not is_last:
            self._advance()
        elif self._fault is None:
            self._transport.close()
        else:
            # Closing with unread bytes would take the answer away from the client.
            self._is_lingering = True
            self._begun_at = self._at
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def _advance(self) -> None:
        """Serve what waits, one after the other; answers given at once do not pile up calls."""
        if self._is_advancing:
            return
        self._is_advancing = True
        while self._queue and self._active is None and self._blocked_at is None:
            self._active = exchange = self._queue.popleft()
            if exchange.head is _NO_HEAD:
                self._answer_fault(exchange)
            else:
                self._server.dispatch(exchange)
        self._is_advancing = False
        self._permit()
        if len(self._queue) >= self._limits.max_pipelined:
            self._pause_reading()
        elif self._is_read_paused and self._blocked_at is None:
            self._is_read_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def _permit(self) -> None:
        """Let the client send the body it announced, once everything before it is answered."""
        if self._owes_continue and self._active is None and not self._queue:
            self._owes_continue = False
            if self._transport is not None:
                self._transport.write(CONTINUE)

    def _pause_reading(self) -> None:
        if not self._is_read_paused and self._transport is not None:
            self._is_read_paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _note(self, fault: HttpError) -> None:
        if self._fault is None and not self._is_ended:
            self._fault = fault

    def _check_head(self) -> None:
        """Note a head that is too long; its exact size matters only where much came at once."""
        limits = self._limits
        is_long = False
        if self._head_bytes + self._chunk_bytes > limits.max_header_bytes:
            fields = sum([len(name) + len(value) + 4 for name, value in self._headers])
            is_long = fields > limits.max_header_bytes
        if is_long or len(self._headers) > limits.max_headers:
            self._note(_LONG_HEAD)

    def _refuse(self, fault: HttpError) -> None:
        """Answer a fault behind everything that came before it, and listen no more."""
        self._fault = fault
        self._is_ended = True
        self._stage = _NOTHING
        self._owes_continue = False
        self._server.buffered_bytes -= self._received if self._coming is not None else 0
        self._held -= self._received if self._coming is not None else 0
        self._coming, self._parts = None, []
        exchange = Exchange(self, _NO_HEAD)
        exchange.is_last = True
        self._queue.append(exchange)
        self._advance()

    def _answer_fault(self, exchange: Exchange) -> None:
        fault = self._fault
        if fault is not None:
            self._server.count_fault(fault.status)
            more = b"retry-after: 1\r\n" if fault.status == 503 else b""
            exchange.answer(fault.status, problem_bytes(fault.message, fault.hint), JSON + more)

    def _is_starving(self, now: float) -> bool:
        if self._is_read_paused:
            return False
        late_s = now - self._begun_at - self._limits.body_grace_s
        return late_s > 0 and self._received < late_s * self._limits.min_body_rate

    def _sweep_blocked(self, now: float, since: float) -> None:
        left = self._transport.get_write_buffer_size()
        if left < self._blocked_bytes:
            self._blocked_at, self._blocked_bytes = now, left
        elif now - since > self._limits.write_timeout_s:
            self.abort()


def too_large(limit: int) -> HttpError:
    """Return the fault of a body over the limit."""
    return HttpError(
        413,
        f"the body is larger than {limit} bytes",
        "send fewer rows at once, or raise `max_body_bytes`",
    )


def _fault_of(error: httptools.HttpParserError) -> HttpError:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return HttpError(501, "the method is not known", "use GET, HEAD, POST or PUT")
    return HttpError(
        400, f"this is no HTTP/1.1 request: {error}", "send a request as RFC 9112 says"
    )
