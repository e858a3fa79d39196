"""What the workers of one service tell one another: one state, whichever of them answers.

`broadcast` runs a handler in every worker and returns what each of them said; `ask` gets the one
answer of the whole service, such as its metrics. With one worker the bus is a dictionary of
functions. With several, each worker holds one end of a socket pair whose other end is in the
supervisor: nobody else can speak on it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from fairlead.core import errors

__all__ = ["Bus", "Handler", "Link", "LocalBus", "WorkerBus", "revived", "say_failed"]

_log = logging.getLogger(__name__)
_MAX_FRAME_BYTES = 1 << 28

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Takes a JSON document and returns one; it may raise a `FairleadError`."""


class Bus(Protocol):
    """Reaches every worker of the service, the asking one included."""

    n_workers: int
    """Workers that the service was started with."""

    def on(self, op: str, handler: Handler) -> None:
        """Answer an operation with a handler, in this worker."""

    async def broadcast(
        self, op: str, body: dict[str, Any], *, keep: str | None = None
    ) -> list[dict[str, Any]]:
        """Run an operation in every worker, in one order for all, and return their answers.

        Operations with one first word (`repository.load`, `repository.unload`) never overlap.
        A worker that fails where others succeed is replaced, so that all hold one state.

        Args:
            op: Name, for example `traffic.set`, `repository.load`.
            body: A JSON document for the handlers.
            keep: Names the state that this sets (for example `traffic/digits`): a worker that is
                started later hears the last operation of that name before it takes requests.

        Raises:
            FairleadError: Every worker refused; the first one's error, of the same kind.
        """

    async def ask(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the whole service.

        Raises:
            FairleadError: It cannot be given.
        """


class LocalBus:
    """The bus of a service with one worker: calls its handlers, and nothing else."""

    n_workers = 1

    def __init__(self) -> None:
        """Start without handlers."""
        self._handlers: dict[str, Handler] = {}

    def on(self, op: str, handler: Handler) -> None:
        """See `Bus.on`."""
        self._handlers[op] = handler

    async def broadcast(
        self,
        op: str,
        body: dict[str, Any],
        *,
        keep: str | None = None,  # noqa: ARG002 (there is no later worker)
    ) -> list[dict[str, Any]]:
        """See `Bus.broadcast`."""
        return [await self.ask(op, body)]

    async def ask(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """See `Bus.ask`."""
        return await self._handlers[op](body)


class Link:
    """One end of a socket pair: asks and answers in JSON, many at a time; in one event loop."""

    def __init__(self, answer: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        """Prepare.

        Args:
            answer: Called with operation and body of what the other end asks.
        """
        self._answer = answer
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, end: socket.socket) -> None:
        """Start to listen on a socket."""
        reader, self._writer = await asyncio.open_unix_connection(sock=end)
        self._spawn(self._listen(reader))

    async def ask(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the other end.

        Raises:
            ConnectionError: It is gone.
            FairleadError: What it raised.
        """
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._send({"ask": number, "op": op, "body": body})
            answer: dict[str, Any] = await future
        finally:
            self._asked.pop(number, None)
        return answer

    def tell(self, op: str, body: dict[str, Any]) -> None:
        """Tell the other end something that needs no answer; silent when it is gone."""
        with suppress(ConnectionError):
            self._send({"ask": 0, "op": op, "body": body})

    def close(self) -> None:
        """Stop listening and hang up."""
        for task in list(self._tasks):
            task.cancel()
        if self._writer is not None:
            self._writer.close()
        self._hang_up()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > _MAX_FRAME_BYTES:
                    raise ConnectionError(f"a message of {size} bytes")
                self._receive(json.loads(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._hang_up()

    def _receive(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self._spawn(self._respond(message))
            return
        future = self._asked.pop(message["to"], None)
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(revived(message["error"]))
        else:
            future.set_result(message["body"])

    async def _respond(self, message: dict[str, Any]) -> None:
        number = message["ask"]
        try:
            answer = {"to": number, "body": await self._answer(message["op"], message["body"])}
        except errors.FairleadError as exc:
            answer = {"to": number, "error": [exc.code, exc.message, exc.hint]}
        except Exception as exc:  # noqa: BLE001 (handed on to the other end)
            _log.exception("`%s` failed", message["op"])
            answer = {"to": number, "error": ["fairlead", f"it failed: {type(exc).__name__}", ""]}
        if number:
            with suppress(ConnectionError):
                self._send(answer)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is None or self._writer.is_closing():
            raise ConnectionError("the other end is gone")
        self._writer.write(_framed(message))

    def _spawn(self, work: Any) -> None:  # noqa: ANN401 (a coroutine)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hang_up(self) -> None:
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(ConnectionError("the other end is gone"))


class WorkerBus:
    """The bus of a worker that has siblings; goes through the supervisor."""

    def __init__(self, n_workers: int) -> None:
        """Start without handlers; `open` connects.

        Args:
            n_workers: Workers that the service was started with.
        """
        self.n_workers = n_workers
        self._handlers: dict[str, Handler] = {}
        self._link = Link(self._run)

    def on(self, op: str, handler: Handler) -> None:
        """See `Bus.on`."""
        self._handlers[op] = handler

    async def open(self, end: socket.socket) -> None:
        """Connect to the supervisor."""
        await self._link.open(end)

    async def join(self, body: dict[str, Any]) -> None:
        """Say that this worker is warm; returns once it holds the state of its siblings."""
        await self._asked("join", body)

    def beat(self) -> None:
        """Say that the event loop turns."""
        self._link.tell("beat", {})

    async def broadcast(
        self, op: str, body: dict[str, Any], *, keep: str | None = None
    ) -> list[dict[str, Any]]:
        """See `Bus.broadcast`."""
        answer = await self._asked("broadcast", {"op": op, "body": body, "keep": keep})
        return list(answer["answers"])

    async def ask(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """See `Bus.ask`."""
        return await self._asked("service", {"op": op, "body": body})

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    async def _asked(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._link.ask(op, body)
        except ConnectionError as exc:
            raise errors.EndpointError(
                "the supervisor of the workers is gone", hint="start the server again"
            ) from exc

    async def _run(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._handlers[op](body)


def say_failed(end: socket.socket, error: errors.FairleadError) -> None:
    """Tell the supervisor why a worker cannot start, where no event loop runs yet."""
    body = {"error": [error.code, error.message, error.hint]}
    with suppress(OSError):
        end.setblocking(True)
        end.sendall(_framed({"ask": 0, "op": "failed", "body": body}))


def _framed(message: dict[str, Any]) -> bytes:
    raw = json.dumps(message, default=_plain).encode()
    return len(raw).to_bytes(4, "big") + raw


def _plain(value: object) -> object:
    """Let JSON write numbers of numpy."""
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"{type(value).__name__} is no JSON")
    return item()


def revived(said: list[str]) -> errors.FairleadError:
    """Return an error of the same kind as the one that was raised at the other end."""
    code, message, hint = said
    kinds = {kind.code: kind for kind in _family(errors.FairleadError)}
    return kinds.get(code, errors.FairleadError)(message, hint=hint)


def _family(kind: type[errors.FairleadError]) -> Iterator[type[errors.FairleadError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)
