"""What a row costs in batches of different sizes, learnt from the runs: how large a batch pays.

Larger batches share what a run costs whatever its size, until they outgrow the processor's caches;
from there on every row costs more. Where that is depends on the model and the machine, so it is
measured while the model serves. The same numbers say whether rows may be divided between threads.
"""

from __future__ import annotations

__all__ = ["RowCosts"]

_AS_GOOD = 1.02
"""A larger batch is taken although its rows cost up to so much more than the cheapest ones."""
_WORTH_DIVIDING = 1.25
"""Rows may cost so much more where several threads share them, because they end sooner."""
_FEWEST_RUNS = 3
_FORGOTTEN_AFTER = 512
_RISE = 1 / 16
"""How fast a cost rises: a run that was disturbed says little, an undisturbed one much."""
_FALL = 1 / 2
_MOST_RISE = 1.3
"""A run that cost more than so many times the usual counts as one that cost so much."""


class _Cost:
    """What rows of one size of batch cost."""

    __slots__ = ("last", "n_runs", "row_s")

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s
        self.n_runs = 0
        self.last = 0


class RowCosts:
    """Learns from the runs of one shape of rows; sizes are told apart by powers of two."""

    __slots__ = ("_costs", "_n_runs")

    def __init__(self) -> None:
        """Know nothing yet."""
        self._costs: dict[int, _Cost] = {}
        self._n_runs = 0

    def learn(self, rows: int, run_s: float) -> None:
        """Take note of a run: its rows, at least 1, and what it cost in seconds."""
        self._n_runs += 1
        row_s = run_s / rows
        size = (rows - 1).bit_length()
        cost = self._costs.get(size)
        if cost is None:
            cost = self._costs[size] = _Cost(row_s)
        row_s = min(row_s, cost.row_s * _MOST_RISE)
        cost.row_s += (row_s - cost.row_s) * (_FALL if row_s < cost.row_s else _RISE)
        cost.n_runs += 1
        cost.last = self._n_runs
        if self._n_runs % _FORGOTTEN_AFTER == 0:
            # What was not tried for long is tried again.
            oldest = self._n_runs - _FORGOTTEN_AFTER
            self._costs = {s: each for s, each in self._costs.items() if each.last > oldest}

    def rows_to_run(self, waiting: int, share: int) -> int:
        """Return how many of the rows that wait should run together now.

        Args:
            waiting: Rows that wait and may run together, at least 1.
            share: Rows that each thread gets when all are kept busy, at least 1.
        """
        most = min(waiting, self._most())
        return most if share >= most else self._divided(most, share)

    def _most(self) -> int:
        """Return the size beyond which rows are known to cost more."""
        known = {s: each.row_s for s, each in self._costs.items() if each.n_runs >= _FEWEST_RUNS}
        if len(known) < 2:
            return 1 << 62
        enough = min(known.values()) * _AS_GOOD
        best = max(size for size, row_s in known.items() if row_s <= enough)
        return 1 << best if best < max(known) else 1 << 62

    def _divided(self, rows: int, share: int) -> int:
        """Return the smallest number of rows from `share` on that costs little more per row."""
        together = self._costs.get((rows - 1).bit_length())
        if together is None:
            return share
        while share < rows:
            apart = self._costs.get((share - 1).bit_length())
            if apart is None or apart.row_s <= together.row_s * _WORTH_DIVIDING:
                return share
            share *= 2
        return rows
