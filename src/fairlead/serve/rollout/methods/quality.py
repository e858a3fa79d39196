"""Wrong predictions, by pairs of answers to the same row or, without pairs, by arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.measure.sequential import DropTest, FailureTest, average_log_e, harm_test, safety_test
from fairlead.serve.rollout.config import RolloutConfig

if TYPE_CHECKING:
    from fairlead.serve.rollout.target import Observation

__all__ = ["QualityGuard"]

_MOST_WARMUP_ROWS = 50
_ERROR_QUANTILE = 0.75


class QualityGuard:
    """Requests whose prediction was wrong, where the label is known.

    Replayed rows are answered by both arms sooner or later. Repeating a row is no new evidence
    about the rows to come, so each counts once by itself (its first answer, compared between the
    arms like errors) and once as a pair: pairs on which the arms disagree are a fair coin if the
    candidate is as good (McNemar 1947, as an e-process), and the mean difference is bet to lie
    below `max_quality_drop_ratio`. Live requests are answered once, and count by themselves only.

    For numbers, "wrong" is an absolute error above the 75th percentile of the baseline's first
    errors; the rows behind that threshold count no further.
    """

    metric = "quality"

    def __init__(
        self,
        config: RolloutConfig,
        n_labelled: int,
        is_regression: bool,
        state: Mapping[str, Any] | None,
    ) -> None:
        """Start, or go on from a state."""
        old = state or {
            "events": [0, 0], "totals": [0, 0], "rows": {}, "warmup": [],
            "threshold": None if is_regression else 0.5, "pairs": None, "drop": None,
            "harm": None, "safe": None,
        }  # fmt: skip
        self.events, self.totals = list(old["events"]), list(old["totals"])
        self._n_labelled = n_labelled
        self._rows: dict[int, list[float | None]] = {int(k): v for k, v in old["rows"].items()}
        self._warmup: list[float] = list(old["warmup"])
        self._threshold: float | None = old["threshold"]
        self._pairs: FailureTest = harm_test(old["pairs"])
        self._drop = DropTest(config.max_quality_drop_ratio, old["drop"])
        self._harm: FailureTest = harm_test(old["harm"])
        self._safe: FailureTest = safety_test(config.margin, old["safe"])

    def observe(self, seen: Observation) -> None:
        """Take note of one request whose label is known; the others are skipped."""
        loss = seen.judgement.loss
        if loss is None or seen.is_failed:
            return
        if self._threshold is None:
            self._warm_up(seen, loss)
            return
        if seen.judgement.row is None:
            self._count(seen, is_wrong=loss > self._threshold)
            self._observe_alone(seen, is_wrong=loss > self._threshold)
        else:
            self._observe_pair(seen, seen.judgement.row, float(loss > self._threshold))

    def _warm_up(self, seen: Observation, loss: float) -> None:
        row = seen.judgement.row
        if seen.is_candidate or (row is not None and row in self._rows):
            return
        if row is not None:
            self._rows[row] = [None, None]
        self._warmup.append(loss)
        wanted = min(_MOST_WARMUP_ROWS, self._n_labelled // 4 or _MOST_WARMUP_ROWS)
        if len(self._warmup) >= max(wanted, 1):
            self._threshold = float(np.quantile(self._warmup, _ERROR_QUANTILE))

    def _count(self, seen: Observation, *, is_wrong: bool) -> None:
        self.totals[int(seen.is_candidate)] += 1
        self.events[int(seen.is_candidate)] += int(is_wrong)

    def _observe_alone(self, seen: Observation, *, is_wrong: bool) -> None:
        if is_wrong:
            self._harm.update(seen.weight_high, is_candidate=seen.is_candidate)
            self._safe.update(seen.weight_low, is_candidate=seen.is_candidate)

    def _observe_pair(self, seen: Observation, row: int, wrong: float) -> None:
        arm = int(seen.is_candidate)
        answers = self._rows.setdefault(row, [-1.0, -1.0])
        if answers[arm] is None or answers[arm] != -1.0:
            return
        if answers == [-1.0, -1.0]:
            self._observe_alone(seen, is_wrong=bool(wrong))
        self._count(seen, is_wrong=bool(wrong))
        answers[arm] = wrong
        first, second = answers
        if first is None or second is None or -1.0 in (first, second):
            return
        self._drop.update(second - first)
        if first != second:
            self._pairs.update(0.5, is_candidate=second > first)

    @property
    def log_e(self) -> float:
        """Evidence of harm."""
        if self._n_labelled:
            return average_log_e([self._pairs.log_e, self._harm.log_e])
        return self._harm.log_e

    @property
    def safe_log_e(self) -> float:
        """Evidence of safety."""
        return self._drop.log_e if self._n_labelled else self._safe.log_e

    @property
    def can_learn(self) -> bool:
        """Whether more requests bring more evidence: not once every row is a pair."""
        if self._n_labelled == 0:
            return True
        complete = sum(1 for answers in self._rows.values() if -1.0 not in answers)
        return complete < self._n_labelled

    @property
    def state(self) -> dict[str, Any]:
        """What a new guard needs to go on."""
        return {
            "events": self.events,
            "totals": self.totals,
            "rows": {str(row): answers for row, answers in self._rows.items()},
            "warmup": self._warmup,
            "threshold": self._threshold,
            "pairs": self._pairs.state,
            "drop": self._drop.state,
            "harm": self._harm.state,
            "safe": self._safe.state,
        }
