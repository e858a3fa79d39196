"""Refusals for want of room, slowed down once they come in numbers.

Taking a request in and saying no costs a good part of what answering it costs, so that refusing
everybody at once leaves no time to answer anybody. A client that has to wait for its refusal sends
nothing in between: that is what keeps the others served.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from time import perf_counter

from fairlead.core.errors import FairleadError, OverloadedError
from fairlead.serve.inference.http.asking import asking_of, deadline_of
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.refusals import refuse

__all__ = ["Brake"]

_TICK_S = 0.02


class Brake:
    """Answers errors; lives in one event loop."""

    def __init__(
        self, pause_s: float, is_stopping: Callable[[], bool], *, at_once_per_s: float = 100.0
    ) -> None:
        """Prepare.

        Args:
            pause_s: How long a refusal for want of room is held back when there are many, in
                seconds; 0 answers all at once.
            is_stopping: Says whether the server stops, and nothing may be held any more.
            at_once_per_s: Refusals per second, and in a burst, that are answered at once.
        """
        self._is_stopping = is_stopping
        self._pause_s = pause_s
        self._rate = self._tokens = at_once_per_s
        self._at = perf_counter()
        self._held: list[tuple[float, int, Exchange, OverloadedError]] = []
        self._numbers = itertools.count()
        self._is_ticking = False

    @property
    def n_held(self) -> int:
        """Refusals that are held back."""
        return len(self._held)

    def refuse(self, exchange: Exchange, error: Exception) -> None:
        """Answer with what went wrong, now or, where there is no room for many, a while later."""
        if not isinstance(error, OverloadedError) or self._pause_s <= 0 or self._is_stopping():
            refuse(exchange, error)
            return
        now = perf_counter()
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            refuse(exchange, error)
            return
        due = min(now + self._pause_s, _patience_of(exchange, now))
        # What is held is the answer alone: neither the body nor the frames that raised the error.
        exchange.forget_body()
        error.__traceback__ = None
        heapq.heappush(self._held, (due, next(self._numbers), exchange, error))
        if not self._is_ticking:
            self._is_ticking = True
            asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = math.inf if self._is_stopping() else perf_counter()
        while self._held and self._held[0][0] <= now:
            _, _, exchange, error = heapq.heappop(self._held)
            refuse(exchange, error)
        self._is_ticking = bool(self._held)
        if self._is_ticking:
            asyncio.get_running_loop().call_later(_TICK_S, self._tick)


def _patience_of(exchange: Exchange, now: float) -> float:
    """Return until when the client waits, as far as its header fields say."""
    try:
        deadline = deadline_of(asking_of(exchange.head), {}, exchange.arrived)
    except FairleadError:
        return now
    return math.inf if deadline is None else deadline
