"""Answers as bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

import orjson

__all__ = ["CONTINUE", "JSON", "Wire", "field", "json_bytes", "problem_bytes"]

JSON = b"content-type: application/json\r\n"
"""The header line of a JSON answer."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SAFE = b"x-content-type-options: nosniff\r\ncache-control: no-store\r\n"
"""What browsers and caches on the way shall leave alone."""

_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


class Wire:
    """Writes the heads of answers; knows the date, which changes once a second.

    Attributes:
        ok: The beginning of every answer with status 200.
    """

    __slots__ = ("_date", "ok")

    def __init__(self) -> None:
        """Look at the clock."""
        self._date = b""
        self.ok = b""
        self.tick()

    def tick(self) -> None:
        """Look at the clock again."""
        date = formatdate(time.time(), usegmt=True).encode()
        self._date = b"date: %b\r\n%b" % (date, _SAFE)
        self.ok = _LINES[200] + self._date

    def head(self, status: int, size: int, headers: bytes, *, is_last: bool, is_old: bool) -> bytes:
        """Return everything of an answer but its body.

        Args:
            status: Its status.
            size: Bytes of its body.
            headers: Further header lines, each with its line end.
            is_last: Whether the connection closes behind it.
            is_old: Whether the client speaks HTTP/1.0.
        """
        return b"%b%b%bcontent-length: %d\r\n%b\r\n" % (
            _line(status),
            self._date,
            headers,
            size,
            _connection(is_last=is_last, is_old=is_old),
        )

    def stream_head(self, status: int, headers: bytes, *, is_last: bool, is_old: bool) -> bytes:
        """Return the head of an answer whose length is not known yet."""
        coding = b"" if is_old else b"transfer-encoding: chunked\r\n"
        end = _connection(is_last=is_last or is_old, is_old=is_old)
        return b"%b%b%b%b%b\r\n" % (_line(status), self._date, headers, coding, end)


def _line(status: int) -> bytes:
    return _LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()


def _connection(*, is_last: bool, is_old: bool) -> bytes:
    if is_last:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if is_old else b""


def field(name: str, value: str) -> bytes:
    """Return a header line; what could end it early is left out."""
    clean = "".join(letter for letter in value if letter >= " " and letter != "\x7f")
    return f"{name}: {clean}\r\n".encode("latin-1", "replace")


def json_bytes(document: object) -> bytes:
    """Return a document as JSON."""
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def problem_bytes(message: str, hint: str, more: Mapping[str, object] | None = None) -> bytes:
    """Return the body of an answer that says no."""
    return json_bytes({"error": message, "hint": hint, **(more or {})})
