"""How fast an arm works: what a batch will take, and how long the queue will make one wait."""

from __future__ import annotations

import math
from collections import deque

from fairlead.serve.inference.run_times import RunTimes

__all__ = ["Pace"]

_RECENT_RUNS = 9
_HANDOVER_S = 0.012
"""A thread that ended its run may wait so long for the interpreter; the run is not to blame."""
_MOST_STALLS = 9
_VETO_RUNS = 256
_STOPPED = 10.0
"""A run that lasted so many times as long as usual says only that the process stood still."""


class Pace:
    """Remembers the last few runs of an arm."""

    __slots__ = (
        "_costs", "_inline_s", "_known_row_s", "_rows", "_stalls", "_times", "_veto", "_walls",
    )  # fmt: skip

    def __init__(self, inline_s: float, *, has_budget: bool = False) -> None:
        """Know nothing yet.

        Args:
            inline_s: Runs shorter than this may hold up the event loop.
            has_budget: Whether `rows_within` will be asked.
        """
        self._inline_s = inline_s
        self._walls: deque[float] = deque(maxlen=_RECENT_RUNS)
        self._costs: deque[float] = deque(maxlen=_RECENT_RUNS)
        self._rows: deque[int] = deque(maxlen=_RECENT_RUNS)
        self._known_row_s: float | None = None
        self._stalls = 0
        self._times = RunTimes() if has_budget else None
        self._veto = 0

    def learn_inline(self, run_s: float, rows: int) -> None:
        """Take note of a batch that ran in the event loop's thread."""
        self._add(run_s, run_s, rows)
        if run_s < self._inline_s:
            self._stalls = 0
            return
        self._stalls += 1
        if self._stalls >= _MOST_STALLS:
            # It computes little and takes long: it waits for a device, or for somebody else. One
            # that only waits for the interpreter, which the log has now and then, does better soon.
            self._stalls, self._veto = 0, _VETO_RUNS

    def learn_aside(self, run_s: float, cpu_s: float, rows: int) -> None:
        """Take note of a batch that ran in a thread, and of the CPU time it took there."""
        self._add(run_s, cpu_s if run_s - cpu_s < _HANDOVER_S else run_s, rows)
        self._veto = max(0, self._veto - 1)

    def is_short(self, rows: int) -> bool:
        """Return whether a batch will probably not hold up the event loop."""
        if self._veto or not self._rows:
            return False
        fewest = min(self._rows)
        worst_s = max(self._costs) * max(1.0, rows / fewest)
        return worst_s < self._inline_s or self._expect_s(rows, fewest) < self._inline_s

    def rows_within(self, budget_s: float) -> float:
        """Rows that a batch may have to end within a time; infinite before the first run."""
        return math.inf if self._times is None else self._times.rows_within(budget_s)

    def wait_s(self, rows: int, parallel_runs: int) -> float:
        """Seconds until that many rows have been worked off; 0 before the first run."""
        row_s = self._row_s()
        return rows * row_s / parallel_runs if row_s < math.inf else 0.0

    def _add(self, wall_s: float, cost_s: float, rows: int) -> None:
        self._walls.append(wall_s)
        self._costs.append(cost_s)
        self._rows.append(rows)
        self._known_row_s = None
        if self._times is not None:
            self._times.learn(rows, wall_s)

    def _row_s(self) -> float:
        """Seconds per row over the last few runs; infinite before the first one."""
        if not self._rows:
            return math.inf
        if self._known_row_s is None:
            most_s = sorted(self._walls)[len(self._walls) // 2] * _STOPPED
            runs = zip(self._walls, self._rows, strict=True)
            kept = [(wall_s, rows) for wall_s, rows in runs if wall_s <= most_s]
            self._known_row_s = sum([wall_s for wall_s, _ in kept]) / sum(
                [rows for _, rows in kept]
            )
        return self._known_row_s

    def _expect_s(self, rows: int, fewest: int) -> float:
        """Return the lower median of what the last runs say of so many rows.

        A smaller batch is taken to last as long as the one that ran: most of a short run does not
        depend on the rows, and an arm that gets few requests must not look slower than its twin
        that gets many. One run that the machine interrupted changes nothing.
        """
        if rows <= fewest:
            guesses = sorted(self._costs)
        else:
            runs = zip(self._costs, self._rows, strict=True)
            guesses = sorted([cost_s * max(1.0, rows / ran) for cost_s, ran in runs])
        return guesses[(len(guesses) - 1) // 2]
