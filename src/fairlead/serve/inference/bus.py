"""What the workers of one service tell one another: one state, whichever of them answers.

`broadcast` runs a handler in every worker and returns what each of them said. With one worker
the bus is a dictionary of functions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

__all__ = ["Bus", "Handler", "LocalBus"]

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

        Args:
            op: Name, for example `traffic.set`, `repository.load`.
            body: A JSON document for the handlers.
            keep: Names the state that this sets (for example `traffic/digits`): a worker that is
                started later hears the last operation of that name before it takes requests.

        Raises:
            FairleadError: The first error that a handler raised, of the same kind.
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
        self, op: str, body: dict[str, Any], *, keep: str | None = None
    ) -> list[dict[str, Any]]:
        """See `Bus.broadcast`."""
        return [await self._handlers[op](body)]
