"""A client that sends exactly the bytes it is told to."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass


@dataclass
class RawAnswer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class RawClient:
    """One connection to a server."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        host, port = url.removeprefix("http://").rsplit(":", 1)
        self.link = socket.create_connection((host, int(port)), timeout)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.link.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.link.sendall(part)

    def _more(self) -> bool:
        try:
            piece = self.link.recv(65536)
        except ConnectionResetError:
            return False
        self._rest += piece
        return bool(piece)

    def answer(self, *, has_body: bool = True) -> RawAnswer | None:
        """Read one answer; None when the connection ends before it."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return None
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        status = int(first.split()[1])
        if status == 100 or not has_body:
            return RawAnswer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return RawAnswer(status, headers, self._chunks())
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            if not self._more():
                return None
        body, self._rest = self._rest[:length], self._rest[length:]
        return RawAnswer(status, headers, body)

    def _chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._rest:
                assert self._more()
            size, self._rest = self._rest.split(b"\r\n", 1)
            count = int(size, 16)
            while len(self._rest) < count + 2:
                assert self._more()
            body += self._rest[:count]
            self._rest = self._rest[count + 2 :]
            if count == 0:
                return body

    def is_closed(self) -> bool:
        """Wait until the other side closes; False when it sends something instead."""
        return not self._rest and not self._more()


def post(path: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
