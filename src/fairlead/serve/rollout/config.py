"""Settings of a rollout."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from fairlead.core.comparison import ComparisonGate

__all__ = ["Guard", "RolloutConfig"]

Guard = Literal["errors", "latency", "quality"]


class RolloutConfig(ComparisonGate):
    """How carefully a candidate is let in, and what must be shown before it is promoted."""

    method: Literal["conditional-betting"] = "conditional-betting"
    """Statistics behind the decision."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of rolling back a candidate that is no worse, over the whole rollout."""
    steps: tuple[float, ...] = Field((0.1, 0.25, 0.5), min_length=1)
    """Growing shares of the traffic that the candidate gets, each above 0 and below 1."""
    min_requests_per_step: int = Field(100, ge=1)
    """Requests the candidate answers before its share grows."""
    guardrails: tuple[Guard, ...] = Field(("errors", "latency", "quality"), min_length=1)
    """Guardrail metrics; `quality` counts only where labels are known."""
    margin: float = Field(1.5, gt=1, le=10)
    """A promoted candidate fails less than this many times as often as the baseline."""
    absolute_failure_tolerance: float = Field(0.01, gt=0, lt=1)
    """Errors as a ratio of requests that are fine whatever the baseline does."""
    max_quality_drop_ratio: float = Field(0.02, gt=0, lt=1)
    """Wrong predictions the candidate may have more than the baseline, as a ratio of rows."""
    latency_tolerance_ratio: float = Field(0.2, ge=0, le=10)
    """How much slower the candidate may be, 0.2 for 20 %."""
    latency_tolerance_ms: float = Field(2.0, ge=0, le=10_000)
    """Milliseconds that it may be slower beyond that."""
    latency_warmup_requests: int = Field(200, ge=20)
    """Answers of the baseline from which the latency thresholds are frozen."""
    max_requests: int = Field(20_000, ge=1)
    """Requests, of both arms, after which an undecided rollout holds."""
    max_seconds: float = Field(1800.0, gt=0)
    """Time in seconds after which an undecided rollout holds."""
    check_requests: int = Field(200, ge=1, le=10_000)
    """Requests that are replayed between two looks at the guardrails."""
    check_seconds: float = Field(0.5, gt=0, le=60)
    """Time in seconds between two looks at live traffic."""
    concurrency: int = Field(8, ge=1, le=256)
    """Replayed requests that are under way at the same time."""
    rate_rps: float | None = Field(None, gt=0)
    """Replayed requests per second, at random moments; None sends the next after each answer."""
    max_rows: int = Field(1000, ge=1)
    """Rows of the data that are replayed, chosen at random when there are more."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the rows and of the arrival times."""

    @field_validator("steps")
    @classmethod
    def _grow(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share < 1 for share in steps):
            raise ValueError("every share must be above 0 and below 1")
        if list(steps) != sorted(set(steps)):
            raise ValueError("every share must be larger than the one before")
        return steps

    @field_validator("guardrails")
    @classmethod
    def _unique(cls, guardrails: tuple[Guard, ...]) -> tuple[Guard, ...]:
        if len(set(guardrails)) != len(guardrails):
            raise ValueError("a guardrail is named twice")
        return guardrails
