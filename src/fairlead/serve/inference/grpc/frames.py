"""Frames of HTTP/2 (RFC 9113)."""

from __future__ import annotations

import struct
from enum import IntEnum

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADERS",
    "MAX_WINDOW",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITIZED",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "ConnectionFaultError",
    "Fault",
    "Setting",
    "StreamFaultError",
    "behind_preface",
    "frame",
    "frame_head",
    "goodbye_frame",
    "read_settings",
    "reset_frame",
    "settings_frame",
    "window_frame",
    "without_padding",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What every client sends first."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

MAX_WINDOW = (1 << 31) - 1

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")


class Fault(IntEnum):
    """Error codes of HTTP/2."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Setting(IntEnum):
    """Settings of HTTP/2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFaultError(Exception):
    """The other side broke the rules in a way that ends the connection."""

    def __init__(self, fault: Fault, text: str) -> None:
        """Say which rule."""
        super().__init__(text)
        self.fault = fault
        self.text = text


class StreamFaultError(Exception):
    """The other side broke the rules in a way that ends one stream."""

    def __init__(self, fault: Fault) -> None:
        """Say how."""
        super().__init__(fault.name)
        self.fault = fault


def behind_preface(data: bytes) -> int:
    """Return where the frames of a client begin, or 0 while its preface is not complete.

    Raises:
        ConnectionFaultError: It is another preface.
    """
    if not PREFACE.startswith(data[: len(PREFACE)]):
        raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "this is not HTTP/2")
    return len(PREFACE) if len(data) >= len(PREFACE) else 0


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """Return the nine bytes in front of a frame's payload."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return frame_head(len(payload), kind, flags, stream) + payload


def settings_frame(settings: dict[Setting, int]) -> bytes:
    """Return the frame that announces settings."""
    payload = b"".join(_SETTING.pack(name, value) for name, value in settings.items())
    return frame(SETTINGS, 0, 0, payload)


def window_frame(stream: int, change: int) -> bytes:
    """Return the frame that lets so much more be sent on a stream, or on the connection (0)."""
    return frame(WINDOW_UPDATE, 0, stream, change.to_bytes(4, "big"))


def reset_frame(stream: int, fault: Fault) -> bytes:
    """Return the frame that ends a stream."""
    return frame(RST_STREAM, 0, stream, fault.to_bytes(4, "big"))


def goodbye_frame(last: int, fault: Fault, text: str = "") -> bytes:
    """Return the frame that ends a connection behind the last stream that is answered."""
    payload = last.to_bytes(4, "big") + fault.to_bytes(4, "big") + text.encode()[:256]
    return frame(GOAWAY, 0, 0, payload)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings that a frame announces.

    Raises:
        ConnectionFaultError: It is no list of settings, or a value is out of range.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "settings of a wrong size")
    found = [(name, value) for name, value in _SETTING.iter_unpack(payload)]
    for name, value in found:
        if name == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFaultError(Fault.FLOW_CONTROL_ERROR, "the initial window is too large")
        if name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if name == Setting.MAX_FRAME_SIZE and not 1 << 14 <= value < 1 << 24:
            raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "the frame size is out of range")
    return found


def without_padding(payload: bytes, flags: int) -> bytes:
    """Return the payload of a frame that may be padded and carry a priority.

    Raises:
        ConnectionFaultError: It is shorter than it says.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ConnectionFaultError(Fault.FRAME_SIZE_ERROR, "a padded frame is empty")
        start, end = 1, end - payload[0]
    if flags & PRIORITIZED:
        start += 5
    if start > end:
        raise ConnectionFaultError(Fault.PROTOCOL_ERROR, "a frame is padded beyond its end")
    return payload[start:end]
