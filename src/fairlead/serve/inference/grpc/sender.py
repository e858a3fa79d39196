"""What goes back to a client: frames, as fast as its windows allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fairlead.serve.inference.grpc.call import BEGIN, END, Call, end_frame
from fairlead.serve.inference.grpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    Fault,
    StreamFaultError,
    frame,
    frame_head,
)

__all__ = ["Sender"]

_FIRST_WINDOW = 65535
_PREFIX_BYTES = 5
# The heads of the first and of the last frame of an answer, up to the number of the call.
_BEGIN_HEAD = frame_head(len(BEGIN), HEADERS, END_HEADERS, 0)[:5]
_END_HEAD = frame_head(len(END), HEADERS, END_HEADERS | END_STREAM, 0)[:5]


class Sender:
    """Writes the answers of one connection; those of one tick leave in one write.

    Attributes:
        transport: Where to, once it is open.
        window: Bytes that may still be sent on the connection.
        their_window: Bytes that may be sent on a new call.
        their_frame_bytes: Largest frame that the client takes.
    """

    def __init__(self, on_end: Callable[[Call], None]) -> None:
        """Prepare.

        Args:
            on_end: Hears of each call whose answer is complete.
        """
        self.transport: asyncio.Transport | None = None
        self.window = self.their_window = _FIRST_WINDOW
        self.their_frame_bytes = 1 << 14
        self._on_end = on_end
        self._out: list[bytes] = []
        self._is_flushing = False
        self._loop = asyncio.get_running_loop()

    def send_whole(self, call: Call, message: bytes) -> None:
        """Send begin, message and end of an answer at once, where the windows allow it."""
        size = len(message) + _PREFIX_BYTES
        fits = size <= min(self.window, call.window, self.their_frame_bytes)
        if not fits or call.is_begun:
            self.send_piece(call, b"\0" + len(message).to_bytes(4, "big") + message)
            self.send_end(call, END)
            return
        self.window -= size
        number = call.id.to_bytes(4, "big")
        self.write(
            b"%b%b%b%b\0\0%b\0%b%b%b%b%b"
            % (
                _BEGIN_HEAD,
                number,
                BEGIN,
                size.to_bytes(3, "big"),
                number,
                len(message).to_bytes(4, "big"),
                message,
                _END_HEAD,
                number,
                END,
            )
        )
        self._on_end(call)

    def send_piece(self, call: Call, data: bytes) -> None:
        """Send a part of an answer, as soon as the windows allow it."""
        if not call.is_begun:
            call.is_begun = True
            self.write(frame(HEADERS, END_HEADERS, call.id, BEGIN))
        call.unsent.append(data)
        self.pump(call)

    def send_end(self, call: Call, fields: bytes) -> None:
        """End a call once everything of it is sent."""
        call.last = fields
        self.pump(call)

    def widen(self, call: Call, change: int) -> None:
        """Let more be sent on a call.

        Raises:
            StreamFaultError: It would be more than HTTP/2 allows.
        """
        call.window += change
        if call.window > MAX_WINDOW:
            raise StreamFaultError(Fault.FLOW_CONTROL_ERROR)
        self.pump(call)

    def pump(self, call: Call) -> None:
        """Send of a call what the windows allow."""
        unsent = call.unsent
        had_unsent = bool(unsent)
        while unsent:
            room = min(self.window, call.window, self.their_frame_bytes)
            if room <= 0:
                return
            data = unsent.popleft()
            if len(data) > room:
                unsent.appendleft(data[room:])
                data = data[:room]
            self.window -= len(data)
            call.window -= len(data)
            self.write(frame(DATA, 0, call.id, data))
        if had_unsent:
            call.wake()
        if call.last is not None:
            self.write(end_frame(call.id, call.last))
            self._on_end(call)

    def write(self, data: bytes) -> None:
        """Send whole frames, together with others of this tick."""
        self._out.append(data)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def hold(self) -> None:
        """Send nothing until `flush`, which whoever calls this calls in the same tick."""
        self._is_flushing = True

    def flush(self) -> None:
        """Send at once what waits for the end of this tick."""
        self._is_flushing = False
        out, self._out = self._out, []
        if self.transport is not None and not self.transport.is_closing() and out:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
