"""Which classes are taken for which, and whether scores mean what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.report import Finding, Measure, Plot, Series, Table
from fairlead.measure.quality import matched_labels, predicted

__all__ = ["ErrorAnalysis", "analyse_errors", "calibration"]

Floats = NDArray[np.float64]

_PAIRS = 10
_BINS = 10
_BAD_CALIBRATION = 0.05


@dataclass(frozen=True)
class ErrorAnalysis:
    """What the errors look like, beside slices.

    Attributes:
        error_name: What the mean error of all rows is called.
        calibration_error: Expected calibration error, 0 to 1; None without probabilities.
    """

    error_name: str
    calibration_error: float | None = None
    measures: tuple[Measure, ...] = ()
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def analyse_errors(
    manifest: BundleManifest, outputs: Mapping[str, Array], labels: Array
) -> ErrorAnalysis:
    """Describe the errors of a model on labelled rows.

    Raises:
        DataError: The labels do not fit the model.
    """
    truth = matched_labels(manifest, labels)
    guess = predicted(manifest, outputs)
    if manifest.task == "regression":
        return _of_numbers(guess.astype(np.float64), truth.astype(np.float64))
    tables = _confusions(guess, truth)
    confidence = _confidence(manifest, outputs)
    if confidence is None:
        return ErrorAnalysis("error_rate", tables=tables)
    is_right = np.asarray(guess == truth, dtype=np.float64)
    error, points = calibration(confidence, is_right)
    gap = float(confidence.mean() - is_right.mean())
    findings: tuple[Finding, ...] = ()
    if error > _BAD_CALIBRATION:
        how = "higher" if gap > 0 else "lower"
        findings = (
            Finding(
                level="warning",
                text=f"scores are off by {error:.1%} on average; on the whole they are {how} "
                "than the share of right answers",
                advice="do not use scores as probabilities before they are calibrated",
            ),
        )
    return ErrorAnalysis(
        "error_rate",
        error,
        measures=(Measure(name="calibration_error", value=error, unit="ratio"),),
        findings=findings,
        tables=tables,
        plots=(_reliability(points),),
        details={"calibration_error": error, "overconfidence": gap},
    )


def calibration(confidence: Floats, is_right: Floats) -> tuple[float, list[tuple[float, float]]]:
    """Return the expected calibration error in bins of equal size, and each bin's two means.

    Naeini, Cooper and Hauskrecht (2015); equal sizes as in Nixon et al. (2019).

    Args:
        confidence: Score of the predicted class, shape (n_rows,).
        is_right: 1 where the prediction is right, shape (n_rows,).

    Examples:
        >>> calibration(np.full(10, 0.9), np.ones(10))[0].__round__(3)
        0.1
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(_BINS, len(order)))
    points = [(float(confidence[part].mean()), float(is_right[part].mean())) for part in parts]
    weights = np.array([len(part) for part in parts]) / len(order)
    gaps = np.array([abs(said - was) for said, was in points])
    return float((weights * gaps).sum()), points


def _confidence(manifest: BundleManifest, outputs: Mapping[str, Array]) -> Floats | None:
    if manifest.score_output is None or manifest.score_output not in outputs:
        return None
    table = outputs[manifest.score_output].astype(np.float64)
    table = table.reshape(len(table), -1)
    if table.shape[1] == 1:
        table = np.concatenate([1 - table, table], axis=1)
    is_probability = np.isfinite(table).all() and table.min() >= -1e-6
    if not is_probability or np.abs(table.sum(axis=1) - 1).max() > 1e-3:
        return None
    return np.asarray(table.max(axis=1), dtype=np.float64)


def _confusions(guess: Array, truth: Array) -> tuple[Table, ...]:
    is_wrong = guess != truth
    totals = Counter(truth.tolist())
    pairs = Counter(zip(truth[is_wrong].tolist(), guess[is_wrong].tolist(), strict=True))
    if not pairs:
        return ()
    return (
        Table(
            title="Most frequent confusions",
            columns=("true", "predicted", "rows", "share of the true class"),
            rows=tuple(
                (str(was), str(said), count, round(count / totals[was], 4))
                for (was, said), count in pairs.most_common(_PAIRS)
            ),
        ),
    )


def _reliability(points: list[tuple[float, float]]) -> Plot:
    said = tuple(point[0] for point in points)
    return Plot(
        title="Do scores mean what they say?",
        kind="line",
        x_label="score of the predicted class",
        y_label="share of right answers",
        series=(
            Series(name="measured", x=said, y=tuple(point[1] for point in points)),
            Series(name="ideal", x=said, y=said),
        ),
    )


def _of_numbers(guess: Floats, truth: Floats) -> ErrorAnalysis:
    errors = guess - truth
    bias = float(errors.mean())
    spread = float(errors.std(ddof=1)) / len(errors) ** 0.5 if len(errors) > 1 else 0.0
    findings: tuple[Finding, ...] = ()
    if spread > 0 and abs(bias) > 3 * spread:
        how = "high" if bias > 0 else "low"
        text = f"predictions are {abs(bias):.3g} too {how} on average"
        advice = "look for a shifted input or a changed unit of the label"
        findings = (Finding(level="warning", text=text, advice=advice),)
    worst = np.argsort(-np.abs(errors), kind="stable")[:_PAIRS]
    table = Table(
        title="Largest errors",
        columns=("row", "true", "predicted", "error"),
        rows=tuple(
            (int(row), float(truth[row]), float(guess[row]), float(errors[row])) for row in worst
        ),
    )
    return ErrorAnalysis(
        "mean_absolute_error",
        measures=(Measure(name="bias", value=bias),),
        findings=findings,
        tables=(table,),
        details={"bias": bias},
    )
