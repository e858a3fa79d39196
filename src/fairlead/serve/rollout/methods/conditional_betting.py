"""Guardrail metrics watched by conditional betting: valid however often they are looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.core.decision import Guardrail
from fairlead.measure.exceedance import ExceedanceTest
from fairlead.measure.sequential import (
    FailureTest,
    LimitTest,
    RateBound,
    SampleRatioTest,
    average_log_e,
    e_value,
    harm_test,
    safety_test,
)
from fairlead.serve.rollout.config import RolloutConfig
from fairlead.serve.rollout.methods.quality import QualityGuard
from fairlead.serve.rollout.target import Observation

__all__ = ["ConditionalBetting"]

SAMPLE_RATIO_ALPHA = 0.001
"""Chance of a false alarm that the traffic is not split as configured."""


class ErrorGuard:
    """Requests that failed."""

    metric = "errors"

    def __init__(self, config: RolloutConfig, state: Mapping[str, Any] | None) -> None:
        """Start, or go on from a state."""
        old = state or {"events": [0, 0], "totals": [0, 0], "harm": None, "safe": None}
        self.events, self.totals = list(old["events"]), list(old["totals"])
        self._harm: FailureTest = harm_test(old["harm"])
        self._safe: FailureTest = safety_test(config.margin, old["safe"])
        self._limit = LimitTest(config.absolute_failure_tolerance)
        self._bound = RateBound(config.alpha, expected_rate=config.absolute_failure_tolerance)

    def observe(self, seen: Observation) -> None:
        """Take note of one request."""
        arm = int(seen.is_candidate)
        self.totals[arm] += 1
        if seen.is_failed:
            self.events[arm] += 1
            self._harm.update(seen.weight_high, is_candidate=seen.is_candidate)
            self._safe.update(seen.weight_low, is_candidate=seen.is_candidate)

    @property
    def log_e(self) -> float:
        """Evidence of harm."""
        return self._harm.log_e

    @property
    def safe_log_e(self) -> float:
        """Evidence that the rate is below the tolerance, or not above the margin."""
        absolute = self._limit.log_e(self.events[1], self.totals[1])
        return average_log_e([self._safe.log_e, absolute])

    @property
    def upper_bound(self) -> float:
        """Upper confidence bound of the candidate's failure rate."""
        return self._bound.upper(self.events[1], self.totals[1])

    @property
    def can_learn(self) -> bool:
        """Whether more requests bring more evidence."""
        return True

    @property
    def state(self) -> dict[str, Any]:
        """What a new guard needs to go on."""
        return {
            "events": self.events,
            "totals": self.totals,
            "harm": self._harm.state,
            "safe": self._safe.state,
        }


class LatencyGuard:
    """Answers slower than thresholds frozen from the baseline's first answers."""

    metric = "latency"

    def __init__(self, config: RolloutConfig, state: Mapping[str, Any] | None) -> None:
        """Start, or go on from a state."""
        old = state or {"events": [0, 0], "totals": [0, 0], "warmup": [], "thresholds": None}
        self.events, self.totals = list(old["events"]), list(old["totals"])
        self._config = config
        self._warmup: list[float] = list(old["warmup"])
        self._test: ExceedanceTest | None = None
        if old["thresholds"] is not None:
            self._test = self._make(old["thresholds"], old["test"])

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Frozen thresholds in ms, one per quantile; None during the warm-up."""
        return self._test.thresholds if self._test else None

    def observe(self, seen: Observation) -> None:
        """Take note of one request; failures are the errors' business."""
        if seen.is_failed:
            return
        if self._test is None:
            self._warm_up(seen)
            return
        arm = int(seen.is_candidate)
        self.totals[arm] += 1
        if seen.weight_low != seen.weight_high:
            return
        is_slow = self._test.update(
            seen.outcome.total_ms,
            seen.weight_high,
            is_candidate=seen.is_candidate,
            at_s=seen.outcome.at,
        )
        self.events[arm] += int(is_slow)

    def _warm_up(self, seen: Observation) -> None:
        if not seen.is_candidate:
            self._warmup.append(seen.outcome.total_ms)
        if len(self._warmup) >= self._config.latency_warmup_requests:
            self._test = self._make(ExceedanceTest.thresholds_of(self._warmup), None)
            self._warmup = []

    def _make(self, thresholds: Sequence[float], state: Mapping[str, Any] | None) -> ExceedanceTest:
        return ExceedanceTest(
            thresholds,
            margin=self._config.margin,
            tolerance_ratio=self._config.latency_tolerance_ratio,
            tolerance=self._config.latency_tolerance_ms,
            state=state,
        )

    @property
    def log_e(self) -> float:
        """Evidence of harm."""
        return self._test.log_e if self._test else 0.0

    @property
    def safe_log_e(self) -> float:
        """Evidence of safety."""
        return self._test.safe_log_e if self._test else 0.0

    @property
    def can_learn(self) -> bool:
        """Whether more requests bring more evidence."""
        return True

    @property
    def state(self) -> dict[str, Any]:
        """What a new guard needs to go on."""
        return {
            "events": self.events,
            "totals": self.totals,
            "warmup": self._warmup,
            "thresholds": None if self._test is None else list(self._test.thresholds),
            "test": None if self._test is None else self._test.state,
        }


_Guard = ErrorGuard | LatencyGuard | QualityGuard


class ConditionalBetting:
    """All guardrail metrics of one rollout, and the check that the traffic is split as it should.

    The alarm for rolling back is the mean of the guards' e-values, valid under any dependence
    between them; for a promotion every guard must be shown safe on its own.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        n_labelled: int = 0,
        has_labels: bool = False,
        is_regression: bool = False,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Start, or go on from a state.

        Args:
            config: Says which guards there are and how strict.
            n_labelled: Rows with a known label that both arms will answer.
            has_labels: Whether labels of some requests are known.
            is_regression: Whether predictions are numbers, so that losses need a threshold.
            state: `state` of an earlier watch.
        """
        old = state or {}
        guards: list[_Guard] = []
        if "errors" in config.guardrails:
            guards.append(ErrorGuard(config, old.get("errors")))
        if "latency" in config.guardrails:
            guards.append(LatencyGuard(config, old.get("latency")))
        if "quality" in config.guardrails and has_labels:
            guards.append(QualityGuard(config, n_labelled, is_regression, old.get("quality")))
        self.guards: tuple[_Guard, ...] = tuple(guards)
        self._ratio = SampleRatioTest(state=old.get("sample_ratio", ()))
        self._alpha = config.alpha

    def observe(self, seen: Observation) -> None:
        """Take note of one answered request."""
        for guard in self.guards:
            guard.observe(seen)
        if seen.weight_low == seen.weight_high:
            self._ratio.update(seen.weight_high, is_candidate=seen.is_candidate)

    @property
    def harm_log_e(self) -> float:
        """Logarithm of the joint e-value for harm; 0 without a guard."""
        return average_log_e([guard.log_e for guard in self.guards]) if self.guards else 0.0

    @property
    def is_harmful(self) -> bool:
        """Whether the joint e-value has reached 1/alpha."""
        return self.harm_log_e >= math.log(1 / self._alpha)

    @property
    def is_split_broken(self) -> bool:
        """Whether the arms do not get the shares they were given."""
        return self._ratio.log_e >= math.log(1 / SAMPLE_RATIO_ALPHA)

    @property
    def unsafe(self) -> tuple[_Guard, ...]:
        """Guards that have not yet been shown safe."""
        limit = math.log(1 / self._alpha)
        return tuple(guard for guard in self.guards if guard.safe_log_e < limit)

    @property
    def worst(self) -> _Guard:
        """The guard with the strongest evidence of harm."""
        return max(self.guards, key=lambda guard: guard.log_e)

    def guardrails(self) -> tuple[Guardrail, ...]:
        """Return what was seen of every guardrail metric."""
        return tuple(
            Guardrail(
                metric=guard.metric,
                baseline_events=guard.events[0],
                candidate_events=guard.events[1],
                baseline_total=guard.totals[0],
                candidate_total=guard.totals[1],
                harm_e_value=e_value(guard.log_e),
                safe_e_value=e_value(guard.safe_log_e),
            )
            for guard in self.guards
        )

    @property
    def state(self) -> dict[str, Any]:
        """What a new watch needs to go on."""
        found: dict[str, Any] = {guard.metric: guard.state for guard in self.guards}
        return {**found, "sample_ratio": self._ratio.state}
