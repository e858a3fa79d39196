"""Closes what was replaced, once its last request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from fairlead.serve.inference.dataplane import Dataplane

__all__ = ["Retirement"]

_LINGER_S = 0.2
"""Whoever took the dataplane just before it was replaced gets so long to use it."""


class Retirement:
    """Lets dataplanes finish and closes them; lives in one event loop."""

    def __init__(self, executor: Executor) -> None:
        """Close in the threads of an executor."""
        self._executor = executor
        self._leaving: dict[asyncio.Task[None], Dataplane] = {}

    def begin(self, plane: Dataplane, then: Callable[[], None]) -> asyncio.Task[None]:
        """Close a dataplane that gets no further requests, as soon as it is idle.

        Args:
            plane: The dataplane.
            then: Called once it is closed.

        Returns:
            Done once it is closed.
        """
        task = asyncio.get_running_loop().create_task(self._retire(plane, then))
        self._leaving[task] = plane
        task.add_done_callback(lambda done: self._leaving.pop(done, None))
        return task

    async def finish(self) -> None:
        """Wait until all of them are closed."""
        while self._leaving:
            await asyncio.gather(*self._leaving, return_exceptions=True)

    def close(self) -> None:
        """Close the rest at once."""
        for plane in self._leaving.values():
            plane.close()
        self._leaving.clear()

    async def _retire(self, plane: Dataplane, then: Callable[[], None]) -> None:
        await asyncio.sleep(_LINGER_S)
        await plane.drain()
        await asyncio.get_running_loop().run_in_executor(self._executor, plane.close)
        then()
