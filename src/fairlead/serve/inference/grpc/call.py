"""One call: the messages that arrive, and the ones that go back."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote

from fairlead.serve.inference.grpc.call_head import CallHead
from fairlead.serve.inference.grpc.frames import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    frame,
)
from fairlead.serve.inference.grpc.header_blocks import literal_field
from fairlead.serve.inference.grpc.limits import GrpcLimits
from fairlead.serve.inference.grpc.status import CallError, Code, code_of, explain
from fairlead.serve.inference.problems import status_of

__all__ = ["Call", "OnMessage"]

OnMessage = Callable[["Call", bytes], None]
"""Starts to answer a call that takes one message."""

_PREFIX_BYTES = 5
_MAX_TEXT = 2048
_HIGH_WATER = 1 << 20
_MAX_QUEUED = 256

STATUS_200 = b"\x88"
CONTENT_TYPE = b"\x0f\x10\x10application/grpc"
BEGIN = STATUS_200 + CONTENT_TYPE
END = literal_field(b"grpc-status", b"0")


class Outlet(Protocol):
    """What takes the answers of a call."""

    def hold(self) -> None:
        """Send nothing until `flush`."""

    def flush(self) -> None:
        """Send at once what waits."""

    def send_whole(self, call: Call, message: bytes) -> None:
        """Send the one message of an answer, and end the call."""

    def send_piece(self, call: Call, data: bytes) -> None:
        """Send a part of an answer."""

    def send_end(self, call: Call, fields: bytes) -> None:
        """End a call once everything of it is sent."""


class Line(Protocol):
    """What a call needs of its connection."""

    limits: GrpcLimits
    peer: str
    certificate_subject: str | None

    @property
    def sender(self) -> Outlet:
        """Takes answers."""

    @property
    def is_alone(self) -> bool:
        """Whether no other client is connected."""

    def acknowledge(self, call: Call, size: int) -> None:
        """Let the client send so much more on a call."""


class Call:
    """A call that a client made; ends once, with a status.

    Attributes:
        id: Number of its stream.
        head: What its header fields say.
        arrived: When it began, in seconds of `time.perf_counter`.
        on_gone: Called when the client goes away before the end, or None.
        on_end: Called with an HTTP status once it has ended, or None.
        on_message: Takes the one message of a unary call; None for a call that reads several.
        is_begun: Whether the header fields of the answer were sent.
        is_over: Whether it ended, one way or the other.
        is_complete: Whether the client has said everything.
        window: Bytes that may still be sent on it.
        unacknowledged: Bytes received that the client was not yet told it may send again.
        unsent: What waits for the window, in order.
        last: Header fields that end it, once `unsent` is empty; None when it goes on.
        touched: When something last arrived, in seconds of `time.perf_counter`.
        caller: Who asks, as the guard knows them, or "".
    """

    __slots__ = (
        "_connection", "_messages", "_partial", "_room", "_waiter", "arrived", "caller", "head",
        "id", "is_begun", "is_complete", "is_over", "last", "on_end", "on_gone", "on_message",
        "touched",
        "unacknowledged", "unsent", "window",
    )  # fmt: skip

    def __init__(self, connection: Line, number: int, head: CallHead, window: int) -> None:
        """Begin with a head."""
        self._connection = connection
        self.id = number
        self.head = head
        self.arrived = self.touched = time.perf_counter()
        self.on_gone: Callable[[], object] | None = None
        self.on_end: Callable[[int], object] | None = None
        self.on_message: OnMessage | None = None
        self.is_begun = self.is_over = self.is_complete = False
        self.window = window
        self.unacknowledged = 0
        self.unsent: deque[bytes] = deque()
        self.last: bytes | None = None
        self.caller = ""
        self._partial: bytearray | None = None
        self._messages: deque[tuple[bytes, int]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def peer(self) -> str:
        """Address of the client, without the port."""
        return self._connection.peer

    @property
    def certificate_subject(self) -> str | None:
        """Common name of the client's verified certificate, or None."""
        return self._connection.certificate_subject

    @property
    def deadline(self) -> float | None:
        """When the client stops waiting, in seconds of `time.perf_counter`, or None."""
        timeout_s = self.head.timeout_s
        return None if timeout_s is None else self.arrived + timeout_s

    @property
    def outlet(self) -> Outlet:
        """What takes its answers, together with those of other calls of the client."""
        return self._connection.sender

    @property
    def is_alone(self) -> bool:
        """Whether no other client is connected."""
        return self._connection.is_alone

    def is_late(self, now: float) -> bool:
        """Whether the client has stopped waiting at a time of `time.perf_counter`."""
        timeout_s = self.head.timeout_s
        return timeout_s is not None and self.arrived + timeout_s <= now

    @property
    def n_buffered(self) -> int:
        """Bytes that arrived and were not taken."""
        partial = 0 if self._partial is None else len(self._partial)
        return partial + sum(size for _, size in self._messages)

    def receive(self, payload: bytes, *, is_end: bool) -> None:
        """Take a piece of the request; called by the connection.

        Raises:
            CallError: It is not what a call may hold.
        """
        self.is_complete = is_end
        on_message = self.on_message
        # By far the most common: one message, one frame.
        if (
            self._partial is None
            and is_end
            and on_message is not None
            and len(payload) - _PREFIX_BYTES == int.from_bytes(payload[1:5], "big")
        ):
            on_message(self, self._message(payload[0], payload[_PREFIX_BYTES:]))
            return
        if self._partial is None:
            self._partial = bytearray()
        self._partial += payload
        self._split()
        if is_end:
            self._end_of_request()

    async def next(self) -> bytes | None:
        """Return the next message of the client, or None once it has said everything."""
        while not self._messages:
            if self.is_complete or self.is_over:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message, size = self._messages.popleft()
        self._connection.acknowledge(self, size)
        return message

    def respond(self, message: bytes) -> None:
        """Answer with one message, and end well."""
        if not self.is_over:
            self._connection.sender.send_whole(self, message)
            self._conclude(200)

    def send(self, message: bytes) -> None:
        """Send one of several messages."""
        if not self.is_over:
            self._connection.sender.send_piece(
                self, b"\0" + len(message).to_bytes(4, "big") + message
            )

    async def ready(self) -> None:
        """Wait until the client has read enough for further messages."""
        while not self.is_over and sum(map(len, self.unsent)) > _HIGH_WATER:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def finish(self) -> None:
        """End well, after messages that were sent one by one."""
        self._end(END)
        self._conclude(200)

    def fail(self, error: BaseException, *, retry_after_s: float | None = None) -> None:
        """End with the status of an error."""
        code = code_of(error)
        text = quote(explain(error)[:_MAX_TEXT], safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
        fields = literal_field(b"grpc-status", b"%d" % code)
        fields += literal_field(b"grpc-message", text.encode())
        if retry_after_s is not None:
            pushback = b"%d" % round(retry_after_s * 1000)
            fields += literal_field(b"grpc-retry-pushback-ms", pushback)
        self._end(fields)
        self._conclude(499 if code == Code.CANCELLED else status_of(error))

    def leave(self) -> None:
        """Forget the client, which has gone; called by the connection."""
        self.is_over = True
        self.unsent.clear()
        self._messages.clear()
        self.wake()
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()
        self._conclude(499)

    def wake(self) -> None:
        """Let whoever waits for a message or for room look again."""
        for waiter in (self._waiter, self._room):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._waiter = self._room = None

    def _conclude(self, status: int) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(status)

    def _end(self, fields: bytes) -> None:
        if self.is_over or self.last is not None:
            return
        self.on_gone = None
        self._connection.sender.send_end(self, fields if self.is_begun else BEGIN + fields)

    def _split(self) -> None:
        """Take whole messages out of what has arrived."""
        partial = self._partial
        while partial is not None and len(partial) >= _PREFIX_BYTES:
            size = int.from_bytes(partial[1:_PREFIX_BYTES], "big")
            if size > self._connection.limits.max_message_bytes:
                raise self._too_large()
            end = _PREFIX_BYTES + size
            if len(partial) < end:
                return
            message = self._message(partial[0], bytes(partial[_PREFIX_BYTES:end]))
            del partial[:end]
            self._messages.append((message, end))
            if len(self._messages) > _MAX_QUEUED:
                raise CallError(Code.RESOURCE_EXHAUSTED, "too many messages wait in this call")
        if self.on_message is None:
            self.wake()

    def _end_of_request(self) -> None:
        if self._partial:
            raise CallError(Code.INVALID_ARGUMENT, "the call ends in the middle of a message")
        if self.on_message is None:
            self.wake()
            return
        if len(self._messages) != 1:
            raise CallError(
                Code.INVALID_ARGUMENT, f"the method takes one message, got {len(self._messages)}"
            )
        self.on_message(self, self._messages.popleft()[0])

    def _message(self, flag: int, raw: bytes) -> bytes:
        if flag == 0:
            return raw
        limit = self._connection.limits.max_message_bytes
        if flag != 1 or self.head.encoding not in {"gzip", "deflate"}:
            raise CallError(
                Code.UNIMPLEMENTED,
                f"the encoding {self.head.encoding[:40]!r} is not known; send gzip or deflate",
            )
        # 47: accept the headers of both gzip and zlib.
        stream = zlib.decompressobj(47)
        try:
            plain = stream.decompress(raw, limit + 1)
        except zlib.error as exc:
            raise CallError(
                Code.INVALID_ARGUMENT, f"a message is not {self.head.encoding}: {exc}"
            ) from exc
        if len(plain) > limit:
            raise self._too_large()
        if not stream.eof:
            raise CallError(Code.INVALID_ARGUMENT, "a compressed message ends too early")
        return plain

    def _too_large(self) -> CallError:
        limit = self._connection.limits.max_message_bytes
        return CallError(Code.RESOURCE_EXHAUSTED, f"the message is larger than {limit} bytes")


def refusal(http_status: int) -> bytes:
    """Return the header fields that refuse what is no call."""
    return literal_field(b":status", b"%d" % http_status)


def end_frame(number: int, fields: bytes) -> bytes:
    """Return the frame that ends a call."""
    return frame(HEADERS, END_HEADERS | END_STREAM, number, fields)
