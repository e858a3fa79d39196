"""The head of a request: what its first line and its header fields say."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

__all__ = ["Head", "Headers", "HttpError", "check_framing", "path_of"]

Headers = list[tuple[bytes, bytes]]
"""Name in lower case and value, in the order they came."""


class HttpError(Exception):
    """A request that HTTP itself forbids; the connection closes behind the answer."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        """Answer with this status."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint


class Head:
    """First line and header fields of a request.

    Attributes:
        method: Method, in capitals.
        target: What was asked for, as it came.
        is_old: Whether it is HTTP/1.0.
        headers: Its header fields.
        length: Bytes of the body, where the head says so.
        asking: What somebody read from the header fields and keeps for the next request that
            begins with the same bytes.
        route: Where somebody found that it goes, kept in the same way.
    """

    __slots__ = ("asking", "headers", "is_old", "length", "method", "route", "target")

    def __init__(self, method: str, target: bytes, headers: Headers, *, is_old: bool) -> None:
        """Describe a request."""
        self.method = method
        self.target = target
        self.headers = headers
        self.is_old = is_old
        self.length = 0
        self.asking: object = None
        self.route: object = None

    def with_asking(self, asking: object) -> Head:
        """Return a copy of which something else is known."""
        other = Head(self.method, self.target, self.headers, is_old=self.is_old)
        other.length, other.route, other.asking = self.length, self.route, asking
        return other

    def get(self, name: bytes) -> str | None:
        """Return the value of a header field, several ones joined, or None."""
        found = [value for key, value in self.headers if key == name]
        return b", ".join(found).decode("latin-1") if found else None

    @property
    def query(self) -> str:
        """What follows the question mark of the target, still percent-encoded."""
        return self.target.partition(b"?")[2].decode("latin-1")


def check_framing(head: Head, version: str) -> tuple[int | None, bool]:
    """Check what decides where the body ends, more strictly than the parser does.

    The parser has refused both lengths at once, doubled lengths and folded lines.

    Returns:
        The length of the body where it is given, and whether the client waits for `100 Continue`.

    Raises:
        HttpError: The request must not be served.
    """
    if version not in {"1.1", "1.0"}:
        raise HttpError(505, f"HTTP/{version} is not spoken here", "use HTTP/1.1")
    length: int | None = None
    hosts = 0
    waits = False
    for name, value in head.headers:
        if name == b"content-length":
            length = int(value)
        elif name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            _check_coding(value, is_old=head.is_old)
        elif name == b"expect":
            waits = _waits(value)
    if hosts > 1 or (hosts == 0 and not head.is_old):
        raise HttpError(400, f"the request has {hosts} Host headers", "send exactly one")
    return length, waits and not head.is_old


def _check_coding(value: bytes, *, is_old: bool) -> None:
    if is_old or value.strip().lower() != b"chunked":
        raise HttpError(
            501 if not is_old else 400,
            f"transfer encoding {value[:40].decode('latin-1')!r} is not understood",
            "send the body with Content-Length, or chunked over HTTP/1.1",
        )


def _waits(value: bytes) -> bool:
    if value.strip().lower() != b"100-continue":
        raise HttpError(
            417,
            f"the expectation {value[:40].decode('latin-1')!r} cannot be met",
            "leave Expect out, or send 100-continue",
        )
    return True


def path_of(target: bytes) -> tuple[str, ...] | None:
    """Return the decoded segments of a target's path, or None when it is none.

    An encoded slash stays part of its segment: `/v2/models/a%2Fb` asks for a model `a/b`.
    The absolute form, `http://host/v2`, means the same as `/v2`.
    """
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        if not mark or scheme.lower() not in {b"http", b"https"}:
            return None
        at = rest.find(b"/")
        target = rest[at:] if at >= 0 else b"/"
    raw = target.partition(b"?")[0].partition(b"#")[0]
    try:
        return tuple(unquote_to_bytes(part).decode() for part in raw[1:].split(b"/"))
    except UnicodeDecodeError:
        return None
