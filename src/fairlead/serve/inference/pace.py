"""How fast an arm works: what a batch will take, and how long the queue will make one wait."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Pace"]

_RECENT_RUNS = 9


class Pace:
    """Remembers the last few runs of an arm."""

    __slots__ = ("_recent", "_row_s")

    def __init__(self) -> None:
        """Know nothing yet."""
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_RUNS)
        self._row_s = math.inf

    @property
    def row_s(self) -> float:
        """Seconds per row over the recent runs; infinite before the first."""
        return self._row_s

    def learn(self, run_s: float, rows: int) -> None:
        """Take note of a batch that ran."""
        self._recent.append((run_s, rows))
        total_s, total_rows = 0.0, 0
        for spent_s, ran in self._recent:
            total_s += spent_s
            total_rows += ran
        self._row_s = total_s / total_rows

    def expect_s(self, rows: int) -> float:
        """Seconds that a batch will take, the lower median by recent runs; infinite without one.

        A smaller batch is taken to last as long as the one that ran: most of a short run does not
        depend on the rows, and an arm that gets few requests must not look slower than its twin
        that gets many. One run that the machine interrupted changes nothing.
        """
        guesses = sorted(run_s * max(1.0, rows / ran) for run_s, ran in self._recent)
        return guesses[(len(guesses) - 1) // 2] if guesses else math.inf

    def rows_within(self, budget_s: float) -> float:
        """Rows that a batch may have to end within a time; infinite before the first run."""
        return budget_s / self._row_s if self._row_s < math.inf else math.inf

    def wait_s(self, rows: int, parallel_runs: int) -> float:
        """Seconds until that many rows have been worked off; 0 before the first run."""
        return rows * self._row_s / parallel_runs if self._row_s < math.inf else 0.0
