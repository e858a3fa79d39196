"""Looking for the next request of a lone client instead of sleeping.

A process that sleeps between two requests finds its caches cold and has to be woken up, which
takes longer than a small model runs. So where the only client asked again within microseconds
several times in a row, the event loop polls for about as long, and sleeps if nothing came.
"""

from __future__ import annotations

import asyncio
import math
from time import perf_counter

__all__ = ["BusyPoll"]

_IN_A_ROW = 3
"""Short pauses after which the next one is expected to be short as well."""


class BusyPoll:
    """Keeps an event loop awake for the next request; lives in one event loop."""

    def __init__(self, longest_s: float) -> None:
        """Prepare.

        Args:
            longest_s: Longest time without a request that is not slept through, in seconds;
                0 always sleeps.
        """
        self._longest_s = longest_s
        self._answered = -math.inf
        self._n_short = 0
        self._until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_looking(self) -> bool:
        """Whether the event loop polls at the moment."""
        return self._loop is not None

    def answered(self, arrived: float) -> None:
        """Hear that the request of a lone client was just answered.

        Args:
            arrived: When the request came, in seconds of `time.perf_counter`.
        """
        is_short = arrived - self._answered <= self._longest_s
        self._answered = now = perf_counter()
        if not is_short:
            self._n_short = 0
            return
        self._n_short += 1
        if self._n_short < _IN_A_ROW:
            return
        self._until = now + self._longest_s
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        # A callback that is due keeps the loop from sleeping: it only looks what there is to read.
        if self._loop is not None and perf_counter() < self._until:
            self._loop.call_soon(self._look)
        else:
            self._loop = None
