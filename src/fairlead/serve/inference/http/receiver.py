"""Bytes in, complete requests out; the first fault ends it."""

from __future__ import annotations

from collections import deque

import httptools

from fairlead.serve.inference.http.exchange import Exchange, Sender
from fairlead.serve.inference.http.head import Head, Headers, HttpError, check_framing
from fairlead.serve.inference.http.surroundings import Surroundings

__all__ = ["Receiver", "too_large"]

_NOTHING, _HEAD, _BODY = range(3)
"""What is being received."""
_LONG_HEAD = HttpError(431, "the request has too many or too long headers", "send fewer headers")
_FULL = HttpError(503, "the server holds too many bodies", "send it again in 1 s")
_UNSEEN_BYTES = 64 << 10
"""A body up to this size is read before anybody asks who sends it."""
_NO_HEAD = Head("GET", b"", [], is_old=False)
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")}


class Receiver:
    """Parses what one client sends.

    llhttp hands over what it finds through the methods `on_…`; they never raise, but note a
    fault, and nothing that follows a fault is looked at.

    Attributes:
        requests: Complete requests that nobody took yet, in their order.
        fault: What made the rest of the connection useless, or None.
        is_ended: Whether nothing further is read.
        owes_continue: Whether the client waits to be told to send its body.
        held_bytes: Bodies of this connection in memory.
    """

    def __init__(self, connection: Sender, server: Surroundings) -> None:
        """Prepare for a client."""
        self._connection = connection
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self.requests: deque[Exchange] = deque()
        self.fault: HttpError | None = None
        self.is_ended = False
        self.owes_continue = False
        self.held_bytes = 0
        self._stage = _NOTHING
        self._begin()
        self._received = 0
        self._parts: list[bytes] = []
        self._coming: Exchange | None = None
        self._at = self._begun_at = 0.0
        self._chunk_bytes = 0
        self._n_complete = 0
        self._has_length = False
        self._repeatable: Head | None = None
        self._usual_head = _NO_HEAD
        self._usual_start = b""
        self._usual_size = -1

    @property
    def is_between(self) -> bool:
        """Whether no request has begun that is not complete."""
        return self._stage == _NOTHING

    def feed(self, data: bytes, now: float) -> None:
        """Take what came, at a time of `time.perf_counter`."""
        self._at = now
        self._n_complete = 0
        self._repeatable = None
        self._parse(data)
        if self._n_complete == 1 and self._repeatable is not None and self.fault is None:
            self._server.heads.learn(data, self._repeatable)

    def whole(self, data: bytes, now: float) -> Exchange | None:
        """Return the request that some bytes are, where its head was parsed before.

        None where there is more to it; the bytes are then to be fed.
        """
        if self._stage != _NOTHING:
            return None
        server = self._server
        if len(data) == self._usual_size and data.startswith(self._usual_start):
            head, end = self._usual_head, len(self._usual_start)
        else:
            found, end = server.heads.find(data)
            if found is None:
                return None
            head = found
            self._usual_head, self._usual_start, self._usual_size = head, data[:end], len(data)
        if server.buffered_bytes > self._limits.max_buffered_bytes:
            return None
        size = head.length
        self.held_bytes += size
        server.buffered_bytes += size
        return Exchange(self._connection, head, data[end:], now)

    def close(self) -> None:
        """Give back what is held."""
        self.release(self.held_bytes)
        self.requests.clear()
        self.is_ended = True

    def release(self, size: int) -> None:
        """Give back a body that is not needed any more."""
        self.held_bytes -= size
        self._server.buffered_bytes -= size

    def stop(self) -> None:
        """Read no further, and forget a request that is not complete."""
        self.is_ended = True
        self.owes_continue = False
        if self._coming is not None:
            self.release(self._received)
        self._stage = _NOTHING
        self._coming, self._parts = None, []

    def lateness(self, now: float) -> HttpError | None:
        """Return the fault of a client that sends too slowly, or None."""
        spent_s = now - self._begun_at
        if self._stage == _HEAD and spent_s > self._limits.header_timeout_s:
            return HttpError(408, "the headers took too long", "send them at once")
        late_s = spent_s - self._limits.body_grace_s
        is_late = late_s > 0 and self._received < late_s * self._limits.min_body_rate
        if self._stage == _BODY and is_late:
            return HttpError(408, "the body came too slowly", "send it faster, or in parts")
        return None

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self.fault is None:
            self._stage = _HEAD
            self._begun_at = self._at
            self._begin()

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
        self._check_size_of_head()
        if self.fault is not None:
            return
        version = self._parser.get_http_version()
        word = self._parser.get_method()
        method = _METHODS.get(word) or word.decode("latin-1")
        head = Head(method, self._target, self._headers, is_old=version != "1.1")
        self._coming = Exchange(self._connection, head)
        self._stage = _BODY
        self._parts = []
        self._received = 0
        try:
            length, waits = check_framing(head, version)
        except HttpError as fault:
            self._note(fault)
            return
        head.length = length or 0
        self._has_length = length is not None and not waits and not head.is_old
        if head.length > self._limits.max_body_bytes:
            self._note(too_large(self._limits.max_body_bytes))
            return
        is_chunked = length is None and head.get(b"transfer-encoding") is not None
        if is_chunked or waits or head.length > _UNSEEN_BYTES:
            refusal = self._server.screen(head, self._connection)
            if refusal is not None:
                self._note(refusal)
                return
        if waits and length != 0:
            self.owes_continue = True

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        if self.fault is not None:
            return
        self._parts.append(part)
        size = len(part)
        self._received += size
        self.held_bytes += size
        self._server.buffered_bytes += size
        if self._received > self._limits.max_body_bytes:
            self._note(too_large(self._limits.max_body_bytes))
        elif self._server.buffered_bytes > self._limits.max_buffered_bytes:
            self._note(_FULL)

    def on_message_complete(self) -> None:
        """Put a whole request among the others."""
        coming = self._coming
        if self.fault is not None or coming is None:
            return
        self._coming = None
        self._stage = _NOTHING
        self.owes_continue = False
        parts, self._parts = self._parts, []
        coming.body = parts[0] if len(parts) == 1 else b"".join(parts)
        coming.arrived = self._at
        self._n_complete += 1
        if not self._parser.should_keep_alive() or self._parser.should_upgrade():
            coming.is_last = self.is_ended = True
        elif self._has_length and self._begun_at == self._at:
            # It began and ended within one piece, as its length says.
            self._repeatable = coming.head
        self.requests.append(coming)

    # The rest.

    def _begin(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0

    def _parse(self, data: bytes) -> None:
        self._chunk_bytes = len(data)
        unfinished = self._headers if self._stage == _HEAD else None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A switch of protocols is not on offer: the request is answered as it is.
            self.is_ended = True
        except httptools.HttpParserError as exc:
            self._note(_fault_of(exc))
        if self._stage == _HEAD and self._headers is unfinished:
            # All of it belongs to one head, perhaps to one field that never ends.
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_header_bytes:
                self._note(_LONG_HEAD)

    def _check_size_of_head(self) -> None:
        """Note a head that is too long; its exact size matters only where much came at once."""
        limits = self._limits
        is_long = False
        if self._head_bytes + self._chunk_bytes > limits.max_header_bytes:
            fields = sum([len(name) + len(value) + 4 for name, value in self._headers])
            is_long = fields > limits.max_header_bytes
        if is_long or len(self._headers) > limits.max_headers:
            self._note(_LONG_HEAD)

    def _note(self, fault: HttpError) -> None:
        if self.fault is None and not self.is_ended:
            self.fault = fault


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
