"""How fast an arm works: what a batch will take, and how long the queue will make one wait."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Pace"]

_RECENT_RUNS = 9
_HANDOVER_S = 0.012
"""A thread that ended its run may wait so long for the interpreter; the run is not to blame."""
_VETO_RUNS = 256


class _Mean:
    """Seconds per row over the last few runs."""

    __slots__ = ("_recent", "_total_rows", "_total_s", "row_s")

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_RUNS)
        self._total_s = 0.0
        self._total_rows = 0
        self.row_s = math.inf

    def add(self, run_s: float, rows: int) -> None:
        recent = self._recent
        if len(recent) == _RECENT_RUNS:
            old_s, old_rows = recent[0]
            self._total_s -= old_s
            self._total_rows -= old_rows
        recent.append((run_s, rows))
        self._total_s += run_s
        self._total_rows += rows
        self.row_s = max(self._total_s, 0.0) / self._total_rows


class _Runs:
    """The last few runs: how long each took, and for how many rows."""

    __slots__ = ("_fewest", "_recent", "_typical_s")

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_RUNS)
        self._typical_s = math.inf
        self._fewest = 0

    def add(self, run_s: float, rows: int) -> None:
        recent = self._recent
        recent.append((run_s, rows))
        times = sorted([spent_s for spent_s, _ in recent])
        self._typical_s = times[(len(times) - 1) // 2]
        self._fewest = min([ran for _, ran in recent])

    def expect_s(self, rows: int) -> float:
        """Return the lower median of what the runs say of so many rows; infinite without one.

        A smaller batch is taken to last as long as the one that ran: most of a short run does not
        depend on the rows, and an arm that gets few requests must not look slower than its twin
        that gets many. One run that the machine interrupted changes nothing.
        """
        if rows <= self._fewest or not self._recent:
            return self._typical_s
        guesses = sorted([run_s * max(1.0, rows / ran) for run_s, ran in self._recent])
        return guesses[(len(guesses) - 1) // 2]


class Pace:
    """Remembers the last few runs of an arm."""

    __slots__ = ("_costs", "_inline_s", "_stalls", "_veto", "_waits")

    def __init__(self, inline_s: float) -> None:
        """Know nothing yet.

        Args:
            inline_s: Runs shorter than this may hold up the event loop.
        """
        self._inline_s = inline_s
        self._waits = _Mean()
        self._costs = _Runs()
        self._stalls = 0
        self._veto = 0

    def learn_inline(self, run_s: float, rows: int) -> None:
        """Take note of a batch that ran in the event loop's thread."""
        self._waits.add(run_s, rows)
        self._costs.add(run_s, rows)
        if run_s < self._inline_s:
            self._stalls = 0
            return
        self._stalls += 1
        if self._stalls >= 3:
            # It computes little and takes long: it waits for a device, or for somebody else.
            self._stalls, self._veto = 0, _VETO_RUNS

    def learn_aside(self, run_s: float, cpu_s: float, rows: int) -> None:
        """Take note of a batch that ran in a thread, and of the CPU time it took there."""
        self._waits.add(run_s, rows)
        self._costs.add(cpu_s if run_s - cpu_s < _HANDOVER_S else run_s, rows)
        self._veto = max(0, self._veto - 1)

    def is_short(self, rows: int) -> bool:
        """Return whether a batch will probably not hold up the event loop."""
        return not self._veto and self._costs.expect_s(rows) < self._inline_s

    def rows_within(self, budget_s: float) -> float:
        """Rows that a batch may have to end within a time; infinite before the first run."""
        row_s = self._waits.row_s
        return budget_s / row_s if 0 < row_s < math.inf else math.inf

    def wait_s(self, rows: int, parallel_runs: int) -> float:
        """Seconds until that many rows have been worked off; 0 before the first run."""
        row_s = self._waits.row_s
        return rows * row_s / parallel_runs if row_s < math.inf else 0.0
