"""One request and its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fairlead.serve.inference.http.head import Head
from fairlead.serve.inference.http.wire import JSON, field, json_bytes, problem_bytes

__all__ = ["Exchange", "Sender"]


class Sender(Protocol):
    """The connection that an exchange came from; see `Connection`."""

    peer: str

    @property
    def certificate_subject(self) -> str | None:
        """Common name of the client's verified certificate, or None."""

    @property
    def is_alone(self) -> bool:
        """Whether no other client is connected."""

    def awaits(self, exchange: Exchange) -> bool:
        """Whether the client is there and waits for the answer to an exchange."""

    def send(self, exchange: Exchange, status: int, body: bytes, headers: bytes) -> None:
        """Send a whole answer."""

    def begin_stream(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """Send the head of an answer that follows piece by piece."""

    def push(self, exchange: Exchange, piece: bytes) -> bool:
        """Send a piece; return whether more may follow at once."""

    async def drained(self, exchange: Exchange) -> None:
        """Wait until the client has read enough."""

    def finish_stream(self, exchange: Exchange) -> None:
        """End an answer that was sent piece by piece."""

    def release(self, size: int) -> None:
        """Give back the memory of a body."""

    def abort(self) -> None:
        """Close at once."""


class Exchange:
    """A complete request, to be answered once.

    Attributes:
        head: Its first line and header fields.
        body: Its body as it came.
        arrived: When it was complete, in seconds of `time.perf_counter`.
        is_last: Whether the connection closes behind the answer.
        is_answered: Whether the answer, or its beginning, was given.
        on_gone: Called when the client leaves before the answer, or None.
        on_answered: Called with the status just before the answer leaves, or None.
        caller: Who asks, as the guard knows them, or "".
    """

    __slots__ = (
        "_connection", "arrived", "body", "caller", "head", "is_answered", "is_last",
        "on_answered", "on_gone",
    )  # fmt: skip

    def __init__(
        self, connection: Sender, head: Head, body: bytes = b"", arrived: float = 0.0
    ) -> None:
        """Begin with a head."""
        self._connection = connection
        self.head = head
        self.body = body
        self.arrived = arrived
        self.is_last = False
        self.is_answered = False
        self.on_gone: Callable[[], object] | None = None
        self.on_answered: Callable[[int], object] | None = None
        self.caller = ""

    @property
    def peer(self) -> str:
        """Address of the client, without the port."""
        return self._connection.peer

    @property
    def certificate_subject(self) -> str | None:
        """Common name of the client's verified certificate, or None."""
        return self._connection.certificate_subject

    def replace_body(self, body: bytes) -> None:
        """Put what a body really says in its place, and count the memory of that."""
        self._connection.release(len(self.body) - len(body))
        self.body = body

    def forget_body(self) -> None:
        """Give the body back, which nobody will read."""
        size, self.body = len(self.body), b""
        self._connection.release(size)

    @property
    def is_alone(self) -> bool:
        """Whether no other client is connected."""
        return self._connection.is_alone

    @property
    def is_awaited(self) -> bool:
        """Whether the client is still there."""
        return self._connection.awaits(self)

    def answer(self, status: int, body: bytes, headers: bytes = JSON) -> None:
        """Send the whole answer; a second one is ignored."""
        if self.is_answered:
            return
        self.is_answered = True
        self.on_gone = None
        if self.on_answered is not None:
            self.on_answered(status)
        self._connection.send(self, status, body, headers)

    def answer_json(self, document: object, status: int = 200) -> None:
        """Send a document."""
        self.answer(status, json_bytes(document))

    def refuse(
        self, status: int, message: str, hint: str, headers: dict[str, str] | None = None
    ) -> None:
        """Send an answer that says no, and what to do."""
        lines = b"".join(field(name, value) for name, value in (headers or {}).items())
        self.answer(status, problem_bytes(message, hint), JSON + lines)

    def begin(self, status: int, headers: bytes) -> None:
        """Send the head of an answer that follows piece by piece."""
        self.is_answered = True
        if self.on_answered is not None:
            self.on_answered(status)
        self._connection.begin_stream(self, status, headers)

    def push(self, piece: bytes) -> bool:
        """Send a piece; False asks the sender to wait until `drained`."""
        return self._connection.push(self, piece)

    async def drained(self) -> None:
        """Wait until the client has read enough for further pieces.

        Raises:
            ConnectionResetError: It has gone.
        """
        await self._connection.drained(self)

    def finish(self) -> None:
        """End an answer that was sent piece by piece."""
        self.on_gone = None
        self._connection.finish_stream(self)

    def cut(self) -> None:
        """Break off an answer that failed in the middle, so that nobody takes it for whole."""
        self.on_gone = None
        self._connection.abort()
