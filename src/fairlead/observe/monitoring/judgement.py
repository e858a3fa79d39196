"""From numbers to a signal: its kind, the drifted columns, and alerts for people."""

from __future__ import annotations

import math
from typing import Literal

from fairlead.core.bundle import Bundle
from fairlead.core.signal import Alert, ColumnDrift, Signal
from fairlead.measure.drift import ColumnShift, WindowDrift
from fairlead.observe.monitoring.config import MonitoringConfig
from fairlead.observe.monitoring.quality import QualityDrop
from fairlead.observe.monitoring.window import Window

__all__ = ["describe_shift", "judge"]

Kind = Literal["quiet", "data-drift", "prediction-drift", "skew", "no-data"]

_NAMED = 5
_BROKEN_SHARE = 0.5


def judge(
    bundle: Bundle,
    window: Window,
    drift: WindowDrift | None,
    drop: QualityDrop | None,
    config: MonitoringConfig,
    *,
    service: str,
) -> Signal:
    """Make the signal of a window.

    Args:
        bundle: The model that is watched.
        window: The rows.
        drift: What the method found; None when there was too little to judge.
        drop: Quality then and now; None when labels or scores are missing.
        config: What counts as drift.
        service: Name of the service.
    """
    drifted = () if drift is None else _drifted(drift)
    kind = "no-data" if drift is None else _kind(drift)
    alerts = []
    if drift is not None:
        alerts += _drift_alerts(kind, drift, _next_step(drop))
    if drop is not None and drop.is_drop and window.n_rows >= config.min_rows:
        alerts.append(_quality_alert(drop))
    return Signal(
        kind=kind,
        service=service,
        bundle_digest=bundle.digest,
        n_rows=window.n_rows,
        drifted=drifted,
        alerts=tuple(alerts),
    )


def _drifted(drift: WindowDrift) -> tuple[ColumnDrift, ...]:
    relations = [
        ColumnDrift(
            column=f"{relation.first} ~ {relation.second}",
            role="input",
            method="correlation",
            statistic=relation.now,
            p_value=relation.p_value,
            effect=relation.change,
            effect_unit="correlation",
            is_drifted=True,
        )
        for relation in drift.relations
    ]
    return (*_of_role(drift, "input"), *relations, *_of_role(drift, "output"))


def _of_role(drift: WindowDrift, role: str) -> list[ColumnDrift]:
    return [
        ColumnDrift(
            column=shift.column,
            role=shift.role,
            method=shift.method,
            statistic=shift.effect,
            p_value=shift.p_value,
            effect=shift.effect,
            effect_unit=shift.effect_unit,
            is_drifted=True,
        )
        for shift in drift.columns
        if shift.is_drifted and shift.role == role
    ]


def _kind(drift: WindowDrift) -> Kind:
    shifted = [shift for shift in drift.columns if shift.is_drifted and shift.role == "input"]
    if any(_is_broken(shift) for shift in shifted):
        return "skew"
    if shifted or drift.relations:
        return "data-drift"
    return "prediction-drift" if drift.is_drifted else "quiet"


def _is_broken(shift: ColumnShift) -> bool:
    """Tell a column that was filled differently from one whose world changed."""
    lost = shift.missing_now - shift.missing_before
    return lost >= _BROKEN_SHARE or shift.strange_ratio >= _BROKEN_SHARE


def describe_shift(shift: ColumnShift) -> str:
    """Say in one phrase how a column changed."""
    if shift.method == "missing-values":
        return f"{shift.column} (missing {shift.missing_before:.1%} → {shift.missing_now:.1%})"
    if shift.kind == "categorical":
        if shift.strange_ratio >= 0.01:
            names = ", ".join(shift.strange_examples[:3])
            return f"{shift.column} ({shift.strange_ratio:.1%} unseen: {names})"
        return f"{shift.column} (w {shift.effect:.2f})"
    before, now = shift.mean_before, shift.mean_now
    if before is None or now is None or not math.isfinite(now):
        return f"{shift.column} ({shift.effect:.2f} {shift.effect_unit})"
    return f"{shift.column} (mean {before:.3g} → {now:.3g}, {shift.effect:.2f} {shift.effect_unit})"


def _next_step(drop: QualityDrop | None) -> str:
    if drop is None:
        return "label some current rows and watch them with --labels to see what it costs"
    if drop.is_drop:
        return "retrain with rows like these: quality fell with them"
    return "quality holds: pack again with current rows, so that they become the reference"


def _drift_alerts(kind: Kind, drift: WindowDrift, next_step: str) -> list[Alert]:
    inputs = [s for s in drift.columns if s.is_drifted and s.role == "input"]
    outputs = [s for s in drift.columns if s.is_drifted and s.role == "output"]
    alerts = []
    if inputs:
        total = sum(s.role == "input" for s in drift.columns)
        alerts.append(
            Alert(
                name="skew" if kind == "skew" else "data-drift",
                severity="page" if kind == "skew" else "ticket",
                text=f"{len(inputs)} of {total} inputs shifted: {_listed(inputs)}",
                advice=_SKEW_ADVICE if kind == "skew" else next_step,
            )
        )
    if drift.relations:
        first = drift.relations[0]
        alerts.append(
            Alert(
                name="relation-drift",
                severity="ticket",
                text=f"inputs go together differently: {first.first} and {first.second} had "
                f"correlation {first.before:.2f}, now {first.now:.2f}",
                advice="check joins and the order of rows and columns in the feature pipeline",
            )
        )
    if outputs:
        alerts.append(
            Alert(
                name="prediction-drift",
                severity="ticket",
                text=f"the model answers differently: {_listed(outputs)}",
                advice=next_step if inputs or drift.relations else _OUTPUT_ADVICE,
            )
        )
    return alerts


_SKEW_ADVICE = (
    "a column is filled differently than in the reference rows: check its unit, encoding and "
    "join before anything else"
)
_OUTPUT_ADVICE = (
    "inputs look alike but answers do not: check the version that serves, and that the bundle "
    "was packed with rows the model was not trained on"
)


def _listed(shifts: list[ColumnShift]) -> str:
    words = "; ".join(describe_shift(shift) for shift in shifts[:_NAMED])
    more = len(shifts) - _NAMED
    return f"{words}; and {more} more" if more > 0 else words


def _quality_alert(drop: QualityDrop) -> Alert:
    return Alert(
        name="quality-drop",
        severity="page",
        text=f"{drop.metric} fell from {drop.before.value:.3g} to {drop.now.value:.3g} on "
        f"{drop.now.sample_size} labelled rows (loss {drop.drop:.3g}, 95 % interval "
        f"{drop.ci_low:.3g} to {drop.ci_high:.3g})",
        advice="find the worst slices with `fairlead observe debug slices`, or roll back",
    )
