"""The report on a window, and the measurements it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from fairlead.core.bundle import Bundle
from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Plot, Report, Series, Table
from fairlead.core.signal import Signal
from fairlead.measure.drift import ColumnShift, WindowDrift
from fairlead.observe.monitoring.card import CARD
from fairlead.observe.monitoring.config import MonitoringConfig
from fairlead.observe.monitoring.distributions import distribution_plot
from fairlead.observe.monitoring.quality import QualityDrop
from fairlead.observe.monitoring.window import Window

__all__ = ["evidence_of", "report_on"]

_ROWS_SHOWN = 15


def report_on(
    signal: Signal,
    window: Window,
    drift: WindowDrift | None,
    drop: QualityDrop | None,
    config: MonitoringConfig,
) -> Report:
    """Put what was found into words, numbers, tables and plots."""
    columns = () if drift is None else drift.columns
    return Report(
        skill=CARD.id,
        title=f"Monitoring of {signal.service}",
        summary=_summary(signal, window, drift, config),
        measures=_measures(signal, drift, drop),
        findings=_findings(signal, drift, drop),
        tables=_tables(drift),
        plots=_plots(window, columns, config),
        details={
            "kind": signal.kind,
            "drifted": [column.model_dump(mode="json") for column in signal.drifted],
            "alerts": [alert.model_dump(mode="json") for alert in signal.alerts],
            "columns": [asdict(shift) for shift in columns],
            "n_rows": window.n_rows,
            "n_compared": 0 if drift is None else drift.n_used,
        },
    )


def _summary(
    signal: Signal, window: Window, drift: WindowDrift | None, config: MonitoringConfig
) -> str:
    rows = f"{window.n_rows:,} rows of {window.source}"
    if drift is None:
        fewer = min(window.n_rows, window.profile.n_rows)
        which = "window" if fewer == window.n_rows else "reference"
        return f"Too few rows to judge: the {which} has {fewer}, at least {config.min_rows} needed."
    if not signal.drifted:
        return (
            f"{rows} look like the {window.profile.n_rows:,} reference rows: none of "
            f"{len(drift.columns)} columns shifted by more than chance and {config.min_effect:g}."
        )
    names = ", ".join(column.column for column in signal.drifted[:3])
    return (
        f"{signal.kind}: {len(signal.drifted)} of {len(drift.columns)} columns and relations "
        f"shifted in {rows}, most of all {names}."
    )


def _measures(
    signal: Signal, drift: WindowDrift | None, drop: QualityDrop | None
) -> tuple[Measure, ...]:
    measures = [Measure(name="rows", value=signal.n_rows, unit="rows")]
    if drift is not None:
        if drift.n_used < drift.n_rows:
            measures.append(Measure(name="rows_compared", value=drift.n_used, unit="rows"))
        measures += [
            Measure(name=name, value=value, unit=unit) for name, value, unit in drift_numbers(drift)
        ]
    if drop is not None:
        measures.append(
            Measure(
                name=drop.metric,
                value=drop.now.value,
                unit="ratio",
                baseline=drop.before.value,
                ci_low=drop.now.ci_low,
                ci_high=drop.now.ci_high,
                note=f"loss {drop.drop:.3g} ({drop.ci_low:.3g} to {drop.ci_high:.3g})",
            )
        )
    return tuple(measures)


def drift_numbers(drift: WindowDrift) -> list[tuple[str, float, str]]:
    """Return the numbers of a comparison: name, value, unit."""
    inputs = [shift for shift in drift.columns if shift.role == "input"]
    outputs = [shift for shift in drift.columns if shift.role == "output"]
    drifted = sum(shift.is_drifted for shift in inputs)
    numbers: list[tuple[str, float, str]] = [
        ("drifted_columns", float(drifted), "count"),
        ("drift_share", drifted / len(inputs) if inputs else 0.0, "ratio"),
        ("changed_relations", float(len(drift.relations)), "count"),
    ]
    if inputs:
        numbers.append(("largest_effect", max(shift.effect for shift in inputs), ""))
    if outputs:
        shifted = [shift.effect for shift in outputs if shift.is_drifted]
        numbers.append(("prediction_drift", max(shifted, default=0.0), ""))
    return numbers


def _findings(
    signal: Signal, drift: WindowDrift | None, drop: QualityDrop | None
) -> tuple[Finding, ...]:
    findings = [
        Finding(
            level="alert" if alert.severity != "info" else "warning",
            text=alert.text,
            advice=alert.advice,
        )
        for alert in signal.alerts
    ]
    if drift is None:
        findings.append(Finding(level="info", text="no verdict", advice="watch a longer window"))
    elif not signal.drifted:
        findings.append(Finding(level="good", text="inputs and answers look as they should"))
    if drift is not None and drift.skipped:
        shown = ", ".join(drift.skipped[:5])
        findings.append(
            Finding(
                level="warning",
                text=f"{len(drift.skipped)} profiled columns are not in the window: {shown}",
                advice="watch it against the bundle that made the predictions",
            )
        )
    if drop is not None and not drop.is_drop:
        text = f"{drop.metric} is {drop.now.value:.3g} on {drop.now.sample_size} labelled rows, "
        text += f"{drop.before.value:.3g} when it was packed: no proven loss beyond the tolerance"
        findings.append(Finding(level="good", text=text))
    return tuple(findings)


def _tables(drift: WindowDrift | None) -> tuple[Table, ...]:
    if drift is None:
        return ()
    tables = [_column_table(drift.columns[:_ROWS_SHOWN])]
    if drift.relations:
        tables.append(
            Table(
                title="Relations that changed",
                columns=("first", "second", "correlation before", "now", "p"),
                rows=tuple(
                    (r.first, r.second, round(r.before, 3), round(r.now, 3), _rounded(r.p_value))
                    for r in drift.relations
                ),
            )
        )
    return tuple(tables)


def _column_table(shifts: tuple[ColumnShift, ...]) -> Table:
    """List columns; missing and strange values only where there are any."""
    cells: dict[str, Callable[[ColumnShift], str | float | bool]] = {
        "column": lambda shift: shift.column,
        "role": lambda shift: shift.role,
        "effect": lambda shift: round(shift.effect, 3),
        "unit": lambda shift: shift.effect_unit,
        "p": lambda shift: _rounded(shift.p_value),
        "drifted": lambda shift: shift.is_drifted,
        "test": lambda shift: shift.method,
    }
    if any(shift.missing_before or shift.missing_now for shift in shifts):
        cells["missing before"] = lambda shift: round(shift.missing_before, 4)
        cells["missing now"] = lambda shift: round(shift.missing_now, 4)
    if any(shift.strange_ratio for shift in shifts):
        cells["never seen"] = lambda shift: round(shift.strange_ratio, 4)
    return Table(
        title="Columns by effect",
        columns=tuple(cells),
        rows=tuple(tuple(cell(shift) for cell in cells.values()) for shift in shifts),
    )


def _rounded(p_value: float) -> float:
    return float(f"{p_value:.2g}")


def _plots(
    window: Window, columns: tuple[ColumnShift, ...], config: MonitoringConfig
) -> tuple[Plot, ...]:
    if not columns:
        return ()
    top = columns[:_ROWS_SHOWN]
    effects = Plot(
        title="Effect per column",
        kind="bar",
        x_label="column",
        y_label="effect (reference standard deviations, or Cohen's w)",
        series=(
            Series(
                name="effect",
                x=tuple(shift.column for shift in top),
                y=tuple(shift.effect for shift in top),
            ),
        ),
        marks=(("smallest that matters", config.min_effect),),
    )
    worst = [shift for shift in columns if shift.is_drifted][: config.shown_columns]
    return (effects, *(distribution_plot(window, shift) for shift in worst))


def evidence_of(
    bundle: Bundle,
    signal: Signal,
    window: Window,
    drift: WindowDrift | None,
    drop: QualityDrop | None,
) -> tuple[Evidence, ...]:
    """Return the measurements of a window, about the bundle."""
    labels = {"service": signal.service, "source": window.source, "data": window.digest}
    found = []
    if drift is not None:
        found = [
            Evidence(
                metric=name,
                value=value,
                unit=unit or "effect",
                method="calibrated union of two-sample tests against the reference profile",
                subject=bundle.digest,
                sample_size=drift.n_used,
                skill=CARD.id,
                labels=labels,
            )
            for name, value, unit in drift_numbers(drift)
            if math.isfinite(value)
        ]
    if drop is not None:
        found.append(
            Evidence(
                metric=f"{drop.metric}_drop_ratio",
                value=drop.drop,
                unit="ratio",
                method="primary score of the bundle minus the score on labelled current rows",
                subject=bundle.digest,
                sample_size=drop.now.sample_size,
                ci_low=drop.ci_low,
                ci_high=drop.ci_high,
                skill=CARD.id,
                labels=labels,
            )
        )
    return tuple(found)
