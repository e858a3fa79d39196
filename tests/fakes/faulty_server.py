"""A server that fails on purpose, on a real port of this machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress

ANSWER = {
    "model_name": "m", "id": "", "outputs": [
        {"name": "y", "datatype": "FP32", "shape": [1], "data": [7.0]},
    ],
}  # fmt: skip


def http(status=200, document=None, headers=(), *, body=None):
    """The bytes of an answer."""
    raw = json.dumps(ANSWER if document is None else document).encode() if body is None else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + raw


class FaultyServer:
    """Answers the n-th request with what the n-th step of the script does.

    A step is bytes (sent as they are), `"drop"` (the connection is closed without an answer), a
    number (seconds to wait before a good answer), or a tuple of such steps in a row. After the
    last one, every answer is good.
    """

    def __init__(self, *script) -> None:
        self._script = list(script)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.requests: list[bytes] = []
        self.n_connections = 0
        self.gone = threading.Event()
        """Set when a client closed its connection before it was answered."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self.n_connections += 1
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link) -> None:
        with link, suppress(OSError):
            while request := _read(link):
                with self._lock:
                    self.requests.append(request)
                    step = self._script.pop(0) if self._script else http()
                for part in step if isinstance(step, tuple) else (step,):
                    if part == "drop":
                        return
                    if isinstance(part, bytes):
                        link.sendall(part)
                    elif self._waits(link, part):
                        link.sendall(http())
                    else:
                        return

    def _waits(self, link, seconds) -> bool:
        """Wait, and see whether the client does."""
        link.settimeout(seconds)
        try:
            if not link.recv(1):
                self.gone.set()
                return False
        except TimeoutError:
            link.settimeout(None)
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()


def _read(link) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = link.recv(65536)
        if not piece:
            return b""
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += link.recv(65536)
    return head + b"\r\n\r\n" + body


def unused_url() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def seconds_of(action) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started
