"""How long a batch of so many rows takes, learnt from the runs: a line, newer runs count more.

What a run costs whatever its size must be told from what each row adds. Who divides the time of
small batches by their rows believes that larger ones take too long, runs smaller ones, and so holds
everybody up.
"""

from __future__ import annotations

import math

__all__ = ["RunTimes"]

_FADING = 0.98
_MOST_RISE = 3.0
"""A run that lasted more than so many times as long as expected counts as one that lasted that."""
_GROWTH = 2
"""Batches grow at most so many times beyond those that ran: a line says little far away."""


class RunTimes:
    """Learns from the runs of an arm."""

    __slots__ = ("_largest", "_rows", "_rows2", "_rows_s", "_s", "_weight")

    def __init__(self) -> None:
        """Know nothing yet."""
        self._weight = self._rows = self._s = self._rows2 = self._rows_s = 0.0
        self._largest = 0.0

    def learn(self, rows: int, run_s: float) -> None:
        """Take note of a run: its rows, at least 1, and how long it took in seconds."""
        if self._weight:
            usual_s = self._s / self._weight * max(1.0, rows * self._weight / self._rows)
            run_s = min(run_s, _MOST_RISE * usual_s)
        self._weight = self._weight * _FADING + 1
        self._rows = self._rows * _FADING + rows
        self._s = self._s * _FADING + run_s
        self._rows2 = self._rows2 * _FADING + rows * rows
        self._rows_s = self._rows_s * _FADING + rows * run_s
        self._largest = max(float(rows), self._largest * _FADING)

    def rows_within(self, budget_s: float) -> float:
        """Return the rows of the largest batch that takes that long; infinite before any run.

        Where all batches had one size, one row more is tried, so that the line is found.
        """
        if not self._weight or not self._s:
            return math.inf
        rows, run_s = self._rows / self._weight, self._s / self._weight
        spread = self._rows2 / self._weight - rows * rows
        most = _GROWTH * max(1.0, self._largest)
        if spread < 1e-3:
            fitting = budget_s * rows / run_s
            return min(most, max(fitting, rows + 1) if run_s <= budget_s else fitting)
        row_s = (self._rows_s / self._weight - rows * run_s) / spread
        row_s = min(max(row_s, 0.0), run_s / rows)
        left_s = budget_s - (run_s - row_s * rows)
        return min(most, left_s / row_s if row_s > 0 else math.copysign(math.inf, left_s))
