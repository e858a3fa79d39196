"""The middle of the bus, in the supervisor: one order for all workers, one answer for a service.

Knows no processes: workers join and leave. What a worker shall hear when it comes later is kept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from fairlead.core.errors import FairleadError, UnavailableError
from fairlead.serve.inference.bus import Handler, Link, revived

__all__ = ["Hub", "Member"]

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0
_LANES = ("traffic", "repository", "other")
"""Operations of one lane run one after the other; whoever joins holds all lanes."""


class Member:
    """One worker as the hub sees it.

    Attributes:
        number: Its place, from 0; a replacement takes the place of the worker that it replaces.
        last_beat: When it was last heard, in seconds of `time.monotonic`.
        has_joined: Whether it is warm and hears broadcasts.
        joined: What it said of itself when it joined.
        failure: Why it could not start, where it said so.
    """

    def __init__(self, hub: Hub, number: int) -> None:
        """See `Hub.welcome`."""
        self._hub = hub
        self.number = number
        self.last_beat = time.monotonic()
        self.has_joined = False
        self.joined: dict[str, Any] = {}
        self.failure: FairleadError | None = None
        self.link = Link(self._answer)

    async def _answer(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        self.last_beat = time.monotonic()
        if op == "beat":
            return {}
        if op == "failed":
            self.failure = revived(body["error"])
            return {}
        if op == "join":
            await self._hub.join(self, body)
            return {}
        if op == "broadcast":
            answers = await self._hub.broadcast(body["op"], body["body"], keep=body["keep"])
            return {"answers": answers}
        return await self._hub.ask(body["op"], body["body"])


class Hub:
    """Puts the workers' operations in order and hands them on; lives in one event loop."""

    def __init__(self, replace: Callable[[Member], None]) -> None:
        """Start without workers.

        Args:
            replace: Ends a worker that failed where its siblings did not.
        """
        self._replace = replace
        self._members: list[Member] = []
        self._lanes = {name: asyncio.Lock() for name in _LANES}
        self._kept: dict[str, tuple[str, dict[str, Any]]] = {}
        self._services: dict[str, Handler] = {}

    @property
    def members(self) -> tuple[Member, ...]:
        """The workers that joined, by their place."""
        return tuple(sorted((m for m in self._members if m.has_joined), key=lambda m: m.number))

    def on(self, op: str, handler: Handler) -> None:
        """Answer an `ask` of a worker with a handler."""
        self._services[op] = handler

    async def welcome(self, number: int, end: socket.socket) -> Member:
        """Talk to a worker that was started; it joins once it is warm."""
        member = Member(self, number)
        await member.link.open(end)
        self._members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """Forget a worker that ended."""
        member.has_joined = False
        if member in self._members:
            self._members.remove(member)
        member.link.close()

    async def join(self, member: Member, body: dict[str, Any]) -> None:
        """Tell a warm worker what it missed, and let it hear what comes."""
        async with AsyncExitStack() as stack:
            for lane in self._lanes.values():
                await stack.enter_async_context(lane)
            for op, kept in list(self._kept.values()):
                await member.link.ask(op, kept)
            member.joined = body
            member.has_joined = True

    async def broadcast(
        self, op: str, body: dict[str, Any], *, keep: str | None = None
    ) -> list[dict[str, Any]]:
        """Run an operation in every worker; see `Bus.broadcast`."""
        async with self._lanes.get(op.partition(".")[0], self._lanes["other"]):
            asked = self.members
            found = await asyncio.gather(
                *(member.link.ask(op, body) for member in asked), return_exceptions=True
            )
            return self._settled(op, body, keep, list(zip(asked, found, strict=True)))

    async def each(
        self, op: str, body: Callable[[Member], dict[str, Any]]
    ) -> dict[int, dict[str, Any]]:
        """Ask every worker something of its own; return what they said, by their place.

        One that does not answer soon is left out: the watchdog will see to it.
        """
        asked = self.members
        found = await asyncio.gather(
            *(asyncio.wait_for(m.link.ask(op, body(m)), _PATIENCE_S) for m in asked),
            return_exceptions=True,
        )
        answers = dict(zip((member.number for member in asked), found, strict=True))
        for error in answers.values():
            if isinstance(error, FairleadError):
                raise error
        return {number: said for number, said in answers.items() if isinstance(said, dict)}

    async def ask(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the whole service."""
        return await self._services[op](body)

    def _settled(
        self,
        op: str,
        body: dict[str, Any],
        keep: str | None,
        found: list[tuple[Member, dict[str, Any] | BaseException]],
    ) -> list[dict[str, Any]]:
        good = [answer for _, answer in found if isinstance(answer, dict)]
        refused = [(m, error) for m, error in found if isinstance(error, FairleadError)]
        if not good and refused:
            raise refused[0][1]
        if not good:
            raise UnavailableError("no worker is there", hint="try again in a moment")
        for member, error in refused:
            _log.error("worker %d failed `%s`, and is replaced: %s", member.number, op, error)
            self._replace(member)
        if keep is not None:
            self._kept.pop(keep, None)
            self._kept[keep] = (op, body)
        return good
