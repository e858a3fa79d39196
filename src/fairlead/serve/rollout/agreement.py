"""How often the arms predict the same: information for people, no part of the decision."""

from __future__ import annotations

from fairlead.serve.rollout.target import Judgement

__all__ = ["Agreement"]

_MOST_CLASSES = 100


class Agreement:
    """Compares the first predictions of both arms on each replayed row, and their shares."""

    def __init__(self) -> None:
        self._rows: dict[int, list[str | float | None]] = {}
        self._shares: tuple[dict[str | float, int], dict[str | float, int]] = ({}, {})
        self.pairs = 0
        self.differing = 0
        self.largest_gap = 0.0

    def observe(self, judgement: Judgement, *, is_candidate: bool) -> None:
        """Take note of one prediction."""
        value = judgement.prediction
        if value is None:
            return
        counts = self._shares[int(is_candidate)]
        if value in counts or len(counts) < _MOST_CLASSES:
            counts[value] = counts.get(value, 0) + 1
        if judgement.row is not None:
            self._pair(judgement.row, int(is_candidate), value)

    def _pair(self, row: int, arm: int, value: str | float) -> None:
        answers = self._rows.setdefault(row, [None, None])
        if answers[arm] is not None:
            return
        answers[arm] = value
        first, second = answers
        if first is None or second is None:
            return
        self.pairs += 1
        self.differing += int(first != second)
        if isinstance(first, float) and isinstance(second, float):
            self.largest_gap = max(self.largest_gap, abs(first - second))

    @property
    def total_variation(self) -> float | None:
        """Distance between the arms' shares of predicted classes, 0 to 1; None for numbers."""
        first, second = self._shares
        if not first or not second or any(isinstance(value, float) for value in first):
            return None
        n_first, n_second = sum(first.values()), sum(second.values())
        values = set(first) | set(second)
        gaps = (abs(first.get(v, 0) / n_first - second.get(v, 0) / n_second) for v in values)
        return sum(gaps) / 2
