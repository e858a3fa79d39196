"""One measurement: what was measured, how, on how much, where, and on which bytes."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from pydantic import Field

from fairlead.core.values import Value

__all__ = ["Evidence", "EvidenceStore", "current_environment", "latest"]


@lru_cache(maxsize=1)
def current_environment() -> dict[str, str]:
    """Describe the machine and interpreter that take the measurement."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "host": platform.node(),
    }


class Evidence(Value):
    """A measurement that anyone can check again; append-only once stored."""

    metric: str
    """Name with the unit as suffix where it has one: `latency_p95_ms`, `accuracy`."""
    value: float
    """The measured value; NaN is refused by the store."""
    unit: str
    """Unit of `value` and its interval: `ms`, `ratio`, `bytes`, `rps`, `count`."""
    method: str
    """How it was measured, in the field's words."""
    subject: str
    """Digest or name of what was measured (`sha256:…` for bundles, data and artifacts)."""
    sample_size: int = Field(0, ge=0)
    """Number of rows, requests or repetitions behind the value."""
    ci_low: float | None = None
    """Lower end of the 95 % confidence interval, in `unit`."""
    ci_high: float | None = None
    """Upper end of the 95 % confidence interval, in `unit`."""
    skill: str = ""
    """Id of the skill that measured it."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Further dimensions, for example the data digest or the arm of a rollout."""
    environment: Mapping[str, str] = Field(default_factory=lambda: current_environment())
    """Where it was measured."""
    measured_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When, in UTC."""
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Unique id of the measurement; storing the same id twice keeps one."""


class EvidenceStore(Protocol):
    """Append-only memory of measurements."""

    def append(self, evidence: Sequence[Evidence]) -> None:
        """Store measurements; all of them or none."""

    def query(
        self,
        *,
        metric: str | None = None,
        subject: str | None = None,
        skill: str | None = None,
        limit: int = 1000,
    ) -> list[Evidence]:
        """Return matching measurements, newest first."""


def latest(evidence: Sequence[Evidence], metric: str) -> Evidence | None:
    """Return the newest measurement of a metric, or None."""
    found = [item for item in evidence if item.metric == metric]
    return max(found, key=lambda item: item.measured_at) if found else None
