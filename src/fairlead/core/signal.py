"""What watching tells a pipeline, and what it tells a person."""

from __future__ import annotations

from typing import Literal

from fairlead.core.values import Value

__all__ = ["Alert", "ColumnDrift", "Signal"]


class ColumnDrift(Value):
    """How far one column moved from the reference, and whether that is more than chance."""

    column: str
    role: Literal["input", "output"]
    method: str
    statistic: float
    p_value: float
    """After correction for the number of columns."""
    effect: float
    """Size of the shift in units of `effect_unit`."""
    effect_unit: str
    is_drifted: bool


class Alert(Value):
    """One message for a person."""

    name: str
    severity: Literal["page", "ticket", "info"]
    text: str
    advice: str


class Signal(Value):
    """The verdict of watching one window of predictions."""

    kind: Literal["quiet", "data-drift", "prediction-drift", "skew", "no-data"]
    service: str
    bundle_digest: str
    n_rows: int
    drifted: tuple[ColumnDrift, ...]
    """Drifted inputs, then their relations, then outputs; the largest effect first in each."""
    alerts: tuple[Alert, ...] = ()

    @property
    def is_alerting(self) -> bool:
        """Whether a person or a pipeline should act."""
        return bool(self.alerts)
