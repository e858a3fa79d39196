"""Is one arm slower? A sequential test on the values that exceed frozen thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairlead.measure.sequential import FailureTest, average_log_e, harm_test, safety_test

__all__ = ["ExceedanceTest"]

_BURST_GAP_S = 0.005
_BURST_SPAN_S = 0.02
_BURST_MOST = 2


class _BurstTest:
    """Feeds a failure test with bursts: one stall of a server delays many requests at once."""

    def __init__(self, test: FailureTest) -> None:
        self.test = test
        self._burst: list[tuple[float, bool]] = []
        self._began_s = self._last_s = 0.0

    def update(self, at_s: float, weight: float, *, is_candidate: bool) -> None:
        is_over = at_s - self._last_s > _BURST_GAP_S or at_s - self._began_s > _BURST_SPAN_S
        if self._burst and is_over:
            self.test.update_burst(self._burst, _BURST_MOST)
            self._burst = []
        if not self._burst:
            self._began_s = at_s
        self._last_s = at_s
        self._burst.append((weight, is_candidate))


class ExceedanceTest:
    """The failure test on requests that exceed thresholds frozen before it begins.

    The thresholds are quantiles of the baseline; each is tested on its own and the e-values are
    averaged, so a shift of everything and a longer tail both show. The null is that the candidate
    is slower by no more than a ratio and some milliseconds: its values are corrected by both
    before they are compared. Values that exceed a threshold within a few milliseconds of each
    other are one burst and count as two at most, because real servers stall: taken as
    independent, the requests behind one stall would raise false alarms.
    """

    QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
    SAFE_QUANTILES = (0.5, 0.9)

    def __init__(
        self,
        thresholds: Sequence[float],
        *,
        margin: float,
        tolerance_ratio: float = 0.0,
        tolerance: float = 0.0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the thresholds of `QUANTILES`, or go on from an earlier state.

        Args:
            thresholds: One per quantile, in the unit of the values, ascending.
            margin: How many times more often it may exceed a threshold and still be safe.
            tolerance_ratio: How much larger the candidate's values may be, 0.2 for 20 %.
            tolerance: What they may be larger beyond that, in the unit of the values.
            state: `state` of an earlier test.
        """
        self.thresholds = tuple(float(value) for value in thresholds)
        self._ratio, self._tolerance = tolerance_ratio, tolerance
        harm = state["harm"] if state else [None] * len(self.QUANTILES)
        safe = state["safe"] if state else [None] * len(self.SAFE_QUANTILES)
        self._harm = [_BurstTest(harm_test(wealth)) for wealth in harm]
        self._safe = [_BurstTest(safety_test(margin, wealth)) for wealth in safe]

    @classmethod
    def thresholds_of(cls, values: Sequence[float]) -> tuple[float, ...]:
        """Return the quantiles of a warm-up sample, shape (n,), n ≥ 1."""
        return tuple(float(value) for value in np.quantile(np.asarray(values), cls.QUANTILES))

    def update(self, value: float, weight: float, *, is_candidate: bool, at_s: float) -> bool:
        """Take note of one value; return whether it exceeds the highest safe threshold.

        Args:
            value: For example a latency in ms.
            weight: Share of the requests that went to the candidate.
            is_candidate: Whose value it is.
            at_s: When, in seconds; ascending.
        """
        if is_candidate:
            value = (value - self._tolerance) / (1.0 + self._ratio)
        for index, threshold in enumerate(self.thresholds):
            if value <= threshold:
                break
            self._harm[index].update(at_s, weight, is_candidate=is_candidate)
            if index < len(self._safe):
                self._safe[index].update(at_s, weight, is_candidate=is_candidate)
        return value > self.thresholds[len(self._safe) - 1]

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value for harm, averaged over the thresholds."""
        return average_log_e([burst.test.log_e for burst in self._harm])

    @property
    def safe_log_e(self) -> float:
        """Logarithm of the e-value for safety: the least one, because all must be safe."""
        return min(burst.test.log_e for burst in self._safe)

    @property
    def state(self) -> dict[str, Any]:
        """What `state` of a new test needs to go on; a burst that is not over is left out."""
        return {
            "harm": [burst.test.state for burst in self._harm],
            "safe": [burst.test.state for burst in self._safe],
        }
