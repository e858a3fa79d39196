"""HTTP/1.1 of a client as bytes, without any socket: requests written, answers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Response", "ResponseReader", "WireError", "request_bytes"]

_MAX_HEAD = 1 << 16
_NO_BODY = frozenset({204, 304})


class WireError(ValueError):
    """Bytes that are no answer of HTTP/1.1."""


class Response(NamedTuple):
    """One whole answer.

    Attributes:
        status: HTTP status.
        headers: Name in lower case → value; of several of a name, the last.
        body: The body, without its transfer encoding.
        is_reusable: Whether the connection takes another request.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    is_reusable: bool = True


def request_bytes(
    method: str, target: str, host: str, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    """Write one request.

    Args:
        method: For example `POST`.
        target: Path and query, already quoted.
        host: Value of the header `Host`.
        headers: Further headers.
        body: The body, or None without one.

    Raises:
        WireError: A header would smuggle another one.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line or "\0" in line for line in lines):
        raise WireError("a header or the path holds a line break")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join((*lines, "", "")).encode("latin-1")
    return head if body is None else head + body


class ResponseReader:
    """Puts one answer together from pieces as they arrive."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._is_kept_open = True
        self._length: int | None = None
        self._is_chunked = False
        self._body = bytearray()
        self._has_head = False

    @property
    def has_begun(self) -> bool:
        """Whether any byte of the answer arrived."""
        return bool(self._data) or self._has_head

    def feed(self, data: bytes) -> Response | None:
        """Take bytes; returns the answer once it is whole.

        Raises:
            WireError: They are no HTTP answer.
        """
        self._data += data
        if not self._has_head and not self._read_head():
            return None
        if self._is_chunked:
            return self._response() if self._read_chunks() else None
        if self._length is None or len(self._data) < self._length:
            return None
        if len(self._data) > self._length:
            raise WireError("the answer is longer than it says")
        self._body = self._data
        return self._response()

    def end(self) -> Response | None:
        """Say that no more bytes come; returns an answer that had no other end, or None."""
        if not self._has_head or self._is_chunked or self._length is not None:
            return None
        self._body, self._is_kept_open = self._data, False
        return self._response()

    def _response(self) -> Response:
        return Response(self._status, self._headers, bytes(self._body), self._is_kept_open)

    def _read_head(self) -> bool:
        while True:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > _MAX_HEAD:
                    raise WireError("the head of the answer is too long")
                return False
            head = bytes(self._data[:end]).decode("latin-1")
            del self._data[: end + 4]
            self._parse_head(head)
            if self._status >= 200:  # 1xx only announces
                self._has_head = True
                return True

    def _parse_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest[:3]
        if version not in {"HTTP/1.1", "HTTP/1.0"} or not status.isdecimal():
            raise WireError(f"no HTTP answer begins with {first[:60]!r}")
        self._status = int(status)
        self._headers = {}
        for line in lines:
            name, mark, value = line.partition(":")
            if not mark or not name or name != name.strip():
                raise WireError(f"no HTTP header reads {line[:60]!r}")
            self._headers[name.lower()] = value.strip()
        self._frame(version)

    def _frame(self, version: str) -> None:
        headers = self._headers
        connection = headers.get("connection", "").lower()
        self._is_kept_open = connection != "close" and (
            version == "HTTP/1.1" or connection == "keep-alive"
        )
        self._is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        if length is not None and not length.isdecimal():
            raise WireError(f"no length of a body is {length[:20]!r}")
        self._length = None if length is None else int(length)
        if self._status in _NO_BODY:
            self._length, self._is_chunked = 0, False

    def _read_chunks(self) -> bool:
        while True:
            line_end = self._data.find(b"\r\n")
            if line_end < 0:
                return False
            text = bytes(self._data[:line_end]).split(b";")[0].strip()
            try:
                size = int(text, 16)
            except ValueError as exc:
                raise WireError(f"no length of a chunk is {text[:20]!r}") from exc
            start = line_end + 2
            if size == 0:
                # Trailers are not needed; an empty line ends them.
                return self._data.find(b"\r\n\r\n", line_end) >= 0
            if len(self._data) < start + size + 2:
                return False
            self._body += self._data[start : start + size]
            del self._data[: start + size + 2]
