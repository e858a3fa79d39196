"""The worst slices of a labelled set, confirmed on rows that the search did not see."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array
from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Series, Table
from fairlead.measure.slices import SliceFinding, find_slices
from fairlead.observe.debugging.card import CARD
from fairlead.observe.debugging.coding import code_columns
from fairlead.observe.debugging.config import DebuggingConfig
from fairlead.observe.debugging.diagnosis import Diagnosis, WorstSlice
from fairlead.observe.debugging.errors import ErrorAnalysis

__all__ = ["LabelledRows", "find_worst"]

_METHOD = "slice search on one half, test on the other, Benjamini-Hochberg"


@dataclass(frozen=True)
class LabelledRows:
    """Rows with labels and the model's answers.

    Attributes:
        bundle: The model.
        columns: What slices may be made of, name → shape (n_rows,).
        truth: The true class by the name of its column; empty for regression.
        errors: Error of every row, shape (n_rows,).
        analysis: Confusions and calibration.
        source: Where the rows come from, for people.
        digest: Digest of the rows.
    """

    bundle: Bundle
    columns: dict[str, Array]
    truth: dict[str, Array]
    errors: NDArray[np.float64]
    analysis: ErrorAnalysis
    source: str
    digest: str


def find_worst(rows: LabelledRows, config: DebuggingConfig) -> Outcome[Diagnosis]:
    """Find the slices on which the model errs most."""
    features = code_columns(rows.columns, rows.bundle.profile(), bins=config.bins)
    # Paired with a condition that decides the answer, the true class only restates the error.
    truth = code_columns(rows.truth, None, bins=config.bins)
    features += [replace(feature, is_combined=False) for feature in truth]
    found = find_slices(features, rows.errors, config.slice_limits(len(rows.errors)))
    diagnosis = _diagnosis(rows, found)
    return Outcome(
        noun=diagnosis,
        report=_report(rows, diagnosis, found, len(features)),
        evidence=_evidence(rows, found),
    )


def _diagnosis(rows: LabelledRows, found: tuple[SliceFinding, ...]) -> Diagnosis:
    slices = tuple(
        WorstSlice(
            conditions=one.conditions,
            n_rows=one.n_rows,
            error=one.error,
            overall_error=one.overall_error,
            lift=one.lift,
            p_value=one.p_value,
        )
        for one in found
    )
    if not slices:
        return Diagnosis(
            method="slices",
            subject=rows.bundle.digest,
            cause="none",
            text="no slice is worse than the rest by more than chance",
            advice="errors are spread evenly: more or better labels, or another model",
        )
    worst = slices[0]
    return Diagnosis(
        method="slices",
        subject=rows.bundle.digest,
        cause=worst.text,
        text=f"rows with {worst.text} have {worst.lift:.1f} times the error of all rows "
        f"({worst.error:.3g} against {worst.overall_error:.3g}, {worst.n_rows} rows)",
        advice="look at some of these rows, then collect or relabel rows like them and train again",
        slices=slices,
    )


def _report(
    rows: LabelledRows,
    diagnosis: Diagnosis,
    found: tuple[SliceFinding, ...],
    n_features: int,
) -> Report:
    analysis = rows.analysis
    tables = [_slice_table(found)] if found else []
    return Report(
        skill=CARD.id,
        title=f"Worst slices of {rows.bundle.name}",
        summary=f"{len(rows.errors):,} labelled rows of {rows.source}, {n_features} columns: "
        f"{diagnosis.text}.",
        measures=(
            Measure(name="rows", value=len(rows.errors), unit="rows"),
            Measure(name=analysis.error_name, value=float(rows.errors.mean())),
            Measure(name="slices", value=len(found), unit="count"),
            *analysis.measures,
        ),
        findings=(*_findings(diagnosis, found), *analysis.findings),
        tables=(*tables, *analysis.tables),
        plots=(*_plots(found), *analysis.plots),
        details={
            "worst_slice": list(found[0].conditions) if found else None,
            "slices": [one.model_dump(mode="json") for one in diagnosis.slices],
            **analysis.details,
        },
    )


def _findings(diagnosis: Diagnosis, found: tuple[SliceFinding, ...]) -> list[Finding]:
    if not found:
        return [Finding(level="good", text=diagnosis.text, advice=diagnosis.advice)]
    first = Finding(level="warning", text=diagnosis.text, advice=diagnosis.advice)
    share = found[0].excess_share
    text = f"if it were like the other rows, {share:.0%} of all errors would go"
    return [first, Finding(level="info", text=text)]


def _slice_table(found: tuple[SliceFinding, ...]) -> Table:
    return Table(
        title="Worst slices, confirmed on held-back rows",
        columns=("slice", "rows", "error", "of all rows", "lift", "p", "share of errors"),
        rows=tuple(
            (
                " and ".join(one.conditions), one.n_rows, round(one.error, 4),
                round(one.overall_error, 4), round(one.lift, 2), float(f"{one.p_value:.2g}"),
                round(one.excess_share, 3),
            )
            for one in found
        ),
    )  # fmt: skip


def _plots(found: tuple[SliceFinding, ...]) -> tuple[Plot, ...]:
    if not found:
        return ()
    return (
        Plot(
            title="Error of the worst slices",
            kind="bar",
            x_label="slice",
            y_label="mean error",
            series=(
                Series(
                    name="error",
                    x=tuple(" and ".join(one.conditions) for one in found),
                    y=tuple(one.error for one in found),
                ),
            ),
            marks=(("all rows", found[0].overall_error),),
        ),
    )


def _evidence(rows: LabelledRows, found: tuple[SliceFinding, ...]) -> tuple[Evidence, ...]:
    numbers = [("confirmed_slices", float(len(found)), "count")]
    if found:
        numbers.append(("worst_slice_lift", found[0].lift, "ratio"))
    if rows.analysis.calibration_error is not None:
        numbers.append(("calibration_error", rows.analysis.calibration_error, "ratio"))
    return tuple(
        Evidence(
            metric=metric,
            value=value,
            unit=unit,
            method=_METHOD if "slice" in metric else "expected calibration error, equal-mass bins",
            subject=rows.bundle.digest,
            sample_size=len(rows.errors),
            skill=CARD.id,
            labels={"data": rows.digest, "source": rows.source},
        )
        for metric, value, unit in numbers
    )
