"""One connection of a gRPC client: HTTP/2 as far as calls need it, and no further.

A call that asks for one answer costs one look at its header block, one slice of its message, and
one piece of memory for everything that goes back; calls that end in the same tick of the event
loop leave in the same write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

from fairlead.serve.inference.grpc.call import Call, OnMessage, end_frame, refusal
from fairlead.serve.inference.grpc.call_head import CallHead
from fairlead.serve.inference.grpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFaultError,
    Fault,
    Setting,
    StreamFaultError,
    behind_preface,
    frame,
    goodbye_frame,
    read_settings,
    reset_frame,
    settings_frame,
    window_frame,
    without_padding,
)
from fairlead.serve.inference.grpc.header_blocks import HeaderDecoder, HeaderError
from fairlead.serve.inference.grpc.limits import GrpcLimits
from fairlead.serve.inference.grpc.sender import Sender
from fairlead.serve.inference.grpc.status import CallError, Code
from fairlead.serve.inference.security.certificate_names import certificate_name

__all__ = ["Begin", "Connection"]

_log = logging.getLogger(__name__)

Begin = Callable[[Call], OnMessage | None]
"""Hears of a new call; returns who takes its one message, or None when it reads them itself."""

_FRAME_BYTES = 1 << 18
_STREAM_WINDOW = 1 << 20
_CONNECTION_WINDOW = 1 << 24
_FIRST_WINDOW = 65535
_LINGER_S = 2.0
"""How long a client that was told to go may still send what is thrown away."""


class Connection(asyncio.Protocol):
    """Reads frames, hands calls on, and writes their answers."""

    def __init__(
        self,
        begin: Begin,
        limits: GrpcLimits,
        open_ones: set[Connection],
        on_lone: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare for a client.

        Args:
            begin: Hears of its calls.
            limits: What it may ask.
            open_ones: Where this connection stands while it is open.
            on_lone: Called when all was read that came from the only client there is.
        """
        self.limits = limits
        self.peer = ""
        self.certificate_subject: str | None = None
        self.sender = Sender(self._drop)
        self._begin = begin
        self._on_lone = on_lone
        self._open_ones = open_ones
        self._calls: dict[int, Call] = {}
        self._decoder = HeaderDecoder(CallHead.of, max_list_bytes=limits.max_header_bytes)
        self._rest = b""
        self._is_greeted = self._is_settled = self._is_leaving = self._is_deaf = False
        self._last = 0
        self._block: tuple[int, int, bytes] | None = None
        self._unacknowledged = 0
        self._nuisance = 0
        self._timer: asyncio.TimerHandle | None = None
        self._touched = time.perf_counter()
        self._paused_at: float | None = None
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._on_data,
            HEADERS: self._on_headers,
            PRIORITY: self._on_priority,
            RST_STREAM: self._on_reset,
            SETTINGS: self._on_settings,
            PUSH_PROMISE: self._on_promise,
            PING: self._on_ping,
            GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window,
            CONTINUATION: self._on_continuation,
        }

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        self._transport = self.sender.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.certificate_subject = certificate_name(transport.get_extra_info("peercert"))
        if len(self._open_ones) >= self.limits.max_connections:
            self._transport.abort()
            return
        self._open_ones.add(self)
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self.limits.max_streams,
            Setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            Setting.MAX_FRAME_SIZE: _FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: self.limits.max_header_bytes,
        }
        self.sender.write(
            settings_frame(settings) + window_frame(0, _CONNECTION_WINDOW - _FIRST_WINDOW)
        )
        self._timer = self._loop.call_later(self.limits.sweep_s, self._sweep)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (Protocol)
        """Forget the calls."""
        self._open_ones.discard(self)
        self._is_leaving = True
        self._transport = self.sender.transport = None
        if self._timer is not None:
            self._timer.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.leave()

    def pause_writing(self) -> None:
        """Read nothing more from a client that does not read."""
        self._paused_at = time.perf_counter()
        if self._transport is not None and not self._is_deaf:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on reading."""
        self._paused_at = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take frames out of what has arrived."""
        if self._is_deaf:
            return
        self._touched = time.perf_counter()
        sender = self.sender
        sender.hold()
        try:
            self._rest = self._read(self._rest + data if self._rest else data)
        except ConnectionFaultError as fault:
            self._quit(fault.fault, fault.text)
        except HeaderError as exc:
            self._quit(Fault.COMPRESSION_ERROR, str(exc))
        if self.is_alone:
            self._on_lone()
        sender.flush()

    # What calls ask for.

    def acknowledge(self, call: Call, size: int) -> None:
        """Let the client send so much more on a call."""
        call.unacknowledged += size
        if call.unacknowledged > _STREAM_WINDOW // 2 and not call.is_complete and not call.is_over:
            self.sender.write(window_frame(call.id, call.unacknowledged))
            call.unacknowledged = 0

    def drain(self) -> None:
        """Take no further calls, and close once those there are have ended."""
        if not self._is_leaving:
            self._is_leaving = True
            self.sender.write(goodbye_frame(self._last, Fault.NO_ERROR))
        self._close_if_done()

    @property
    def is_alone(self) -> bool:
        """Whether no other client is connected."""
        return len(self._open_ones) == 1

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # Frames.

    def _read(self, data: bytes) -> bytes:
        """Handle every whole frame; return what is left."""
        at, size = 0, len(data)
        if not self._is_greeted:
            at = behind_preface(data)
            if not at:
                return data
            self._is_greeted = True
        while size - at >= 9:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > _FRAME_BYTES:
                raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, f"a frame has {length} bytes")
            end = at + 9 + length
            if end > size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & MAX_WINDOW
            self._handle(data[at + 3], data[at + 4], stream, data[at + 9 : end])
            at = end
        return data[at:] if at else data

    def _handle(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a header block is interrupted")
        if not self._is_settled:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._is_settled = True
        handler = self._handlers.get(kind)
        if handler is None:
            self._annoy()
            return
        try:
            handler(flags, number, payload)
        except StreamFaultError as fault:
            self._reset(number, fault.fault)

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._count_data(size)
        if flags & PADDED:
            payload = without_padding(payload, PADDED)
        is_end = bool(flags & END_STREAM)
        call = self._calls.get(number)
        if call is None or not (size or is_end):
            self._check_used(number)
            self._annoy()
        if call is None:
            return
        if call.is_complete:
            raise StreamFaultError(Fault.STREAM_CLOSED)
        call.touched = self._touched
        try:
            call.receive(payload, is_end=is_end)
        except CallError as exc:
            call.fail(exc)
            return
        if call.on_message is not None and not is_end:
            self.acknowledge(call, size)
            self._check_buffered(call)

    def _count_data(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged > _CONNECTION_WINDOW:
            raise ConnectionFaultError(Fault.FLOW_CONTROL_ERROR, "more data than the window allows")
        if self._unacknowledged > _CONNECTION_WINDOW // 2:
            self.sender.write(window_frame(0, self._unacknowledged))
            self._unacknowledged = 0

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a client opens odd streams only")
        if flags & (PADDED | PRIORITIZED):
            payload = without_padding(payload, flags)
        if flags & END_HEADERS:
            self._on_block(number, flags, payload)
        else:
            self._block = (number, flags, payload)
            self._check_block()

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a continuation of nothing")
        if not payload:
            self._annoy()
        self._block = (number, self._block[1], self._block[2] + payload)
        self._check_block()
        if flags & END_HEADERS:
            (number, first_flags, block), self._block = self._block, None
            self._on_block(number, first_flags, block)

    def _check_block(self) -> None:
        if self._block is not None and len(self._block[2]) > 2 * self.limits.max_header_bytes:
            raise ConnectionFaultError(Fault.ENHANCE_YOUR_CALM, "a header block is too large")

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        head = self._decoder.decode(block)
        call = self._calls.get(number)
        if call is not None:
            if not flags & END_STREAM or not head.is_trailer:
                raise StreamFaultError(Fault.PROTOCOL_ERROR)
            self._end_request(call)
            return
        if number <= self._last:
            raise ConnectionFaultError(Fault.STREAM_CLOSED, "header fields of a stream that ended")
        self._last = number
        if not head.is_valid or head.is_trailer:
            raise StreamFaultError(Fault.PROTOCOL_ERROR)
        if self._is_leaving or len(self._calls) >= self.limits.max_streams:
            self._annoy()
            raise StreamFaultError(Fault.REFUSED_STREAM)
        self._open(number, head, is_end=bool(flags & END_STREAM))

    def _open(self, number: int, head: CallHead, *, is_end: bool) -> None:
        if head.http_status != 200:
            self.sender.write(end_frame(number, refusal(head.http_status)))
            if not is_end:
                self.sender.write(reset_frame(number, Fault.NO_ERROR))
            return
        call = self._calls[number] = Call(self, number, head, self.sender.their_window)
        try:
            call.on_message = self._begin(call)
        except CallError as exc:
            call.is_complete = is_end
            call.fail(exc)
            return
        if is_end:
            self._end_request(call)

    def _end_request(self, call: Call) -> None:
        if call.is_complete:
            raise StreamFaultError(Fault.STREAM_CLOSED)
        try:
            call.receive(b"", is_end=True)
        except CallError as exc:
            call.fail(exc)

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 5:
            raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "a priority of a wrong size")
        self._annoy()

    def _on_reset(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "a reset of a wrong size")
        self._check_used(number)
        self._annoy()
        call = self._calls.pop(number, None)
        if call is not None:
            call.leave()
            self._close_if_done()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "settings belong to the connection")
        if flags & ACK:
            if payload:
                raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "settings that acknowledge")
            return
        self._annoy()
        for name, value in read_settings(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                change, self.sender.their_window = value - self.sender.their_window, value
                for call in list(self._calls.values()):
                    self.sender.widen(call, change)
            elif name == Setting.MAX_FRAME_SIZE:
                self.sender.their_frame_bytes = value
        self.sender.write(frame(SETTINGS, ACK, 0))

    def _on_promise(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a client pushes nothing")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a ping belongs to the connection")
        if len(payload) != 8:
            raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "a ping of a wrong size")
        if not flags & ACK:
            self._annoy()
            self.sender.write(frame(PING, ACK, 0, payload))

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if number:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a goodbye belongs to the connection")
        self._is_leaving = True
        self._close_if_done()

    def _on_window(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "a window update of a wrong size")
        change = int.from_bytes(payload, "big") & MAX_WINDOW
        if number:
            self._check_used(number)
            call = self._calls.get(number)
            if change == 0:
                raise StreamFaultError(Fault.PROTOCOL_ERROR)
            if call is not None:
                self.sender.widen(call, change)
            return
        self.sender.window += change
        if change == 0 or self.sender.window > MAX_WINDOW:
            raise ConnectionFaultError(Fault.FLOW_CONTROL_ERROR, "the window is out of range")
        for call in list(self._calls.values()):
            self.sender.pump(call)

    def _drop(self, call: Call) -> None:
        """Forget a call whose answer is complete."""
        call.is_over = True
        call.on_gone = None
        self._calls.pop(call.id, None)
        if not call.is_complete:
            # The client need not send the rest.
            self.sender.write(reset_frame(call.id, Fault.NO_ERROR))
        call.wake()
        if self._is_leaving:
            self._close_if_done()

    # Order.

    def _check_used(self, number: int) -> None:
        if number == 0 or number > self._last:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, f"stream {number} was never opened")

    def _check_buffered(self, call: Call) -> None:
        if call.n_buffered <= _STREAM_WINDOW:
            return
        if sum(one.n_buffered for one in self._calls.values()) > self.limits.max_buffered_bytes:
            text = "the connection holds too many unfinished messages"
            call.fail(CallError(Code.RESOURCE_EXHAUSTED, text))

    def _annoy(self) -> None:
        self._nuisance += 1
        if self._nuisance > self.limits.max_nuisance:
            raise ConnectionFaultError(Fault.ENHANCE_YOUR_CALM, "too many frames say nothing")

    def _sweep(self) -> None:
        """Look after the connection: it may be idle, or stuck."""
        self._timer = self._loop.call_later(self.limits.sweep_s, self._sweep)
        self._nuisance = 0
        now = time.perf_counter()
        stall = now - self.limits.stall_s
        if self._paused_at is not None and self._paused_at < stall:
            self.abort()
        elif (self._rest or self._block or not self._is_settled) and self._touched < stall:
            self._quit(Fault.NO_ERROR, "a frame took too long")
        elif not self._calls and self._touched < now - self.limits.idle_s:
            self.drain()
        for call in list(self._calls.values()):
            is_stuck = (call.on_message is not None and not call.is_complete) or call.unsent
            if is_stuck and max(call.touched, call.arrived) < stall:
                call.fail(CallError(Code.DEADLINE_EXCEEDED, "the client was too slow"))
                self._abandon(call)

    def _abandon(self, call: Call) -> None:
        """Reset a call whose client does not even read how it ended."""
        if call.id in self._calls:
            self._reset(call.id, Fault.CANCEL)

    def _reset(self, number: int, fault: Fault) -> None:
        self.sender.write(reset_frame(number, fault))
        call = self._calls.pop(number, None)
        if call is not None:
            call.leave()
        self._close_if_done()

    def _quit(self, fault: Fault, text: str) -> None:
        """Say why, and close."""
        _log.debug("connection of %s ends: %s", self.peer, text)
        self._is_leaving = True
        self.sender.write(goodbye_frame(self._last, fault, text))
        self.sender.flush()
        transport = self._transport
        if transport is None:
            return
        if self._is_deaf or not transport.can_write_eof():
            transport.close()
            return
        # Closing with unread bytes would take the goodbye away from the client.
        self._is_deaf = True
        self.sender.transport = None
        transport.write_eof()
        if self._paused_at is not None:
            transport.resume_reading()
        self._loop.call_later(_LINGER_S, self.abort)

    def _close_if_done(self) -> None:
        if self._is_leaving and not self._calls and self._transport is not None:
            self.sender.flush()
            self._transport.close()
