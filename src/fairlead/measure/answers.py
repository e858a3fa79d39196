"""Whether a changed model still answers like the original: on held-back rows and at the edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.errors import DataError, FairleadError
from fairlead.core.ports import Feeds, Runner
from fairlead.core.signature import Signature
from fairlead.measure.budget import (
    QualityDrop,
    judge_agreement,
    judge_correctness,
    judge_deviation,
    judge_errors,
)
from fairlead.measure.quality import matched_labels, predicted, row_scores, run_batches

__all__ = [
    "EdgeCheck",
    "check_edges",
    "check_labels",
    "count_lost_rows",
    "edge_rows",
    "judge_answers",
]

_LONGER = 4
_FAR = 10.0
"""The far rows lie this many times beyond the range that was seen."""


def judge_answers(
    manifest: BundleManifest,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    labels: Array | None,
    *,
    budget: float,
) -> QualityDrop:
    """Judge how much quality a change cost, by the best yardstick there is.

    With labels: correctness per row (classification) or absolute error per row (regression).
    Without: agreement with the original's classes, or deviation from its numbers. A model whose
    task is not known is compared output by output, and the worst one counts.

    Args:
        manifest: Says the task and which outputs to read.
        before: Outputs of the original, first dimension the rows.
        after: Outputs of the changed model on the same rows.
        labels: Shape (n_rows,), or None.
        budget: Largest drop allowed, as a ratio.

    Raises:
        DataError: Labels are missing on some rows or do not fit, or the original's answers are
            not finite, so that no metric can be computed.
    """
    if labels is not None and manifest.task != "other":
        check_labels(labels)
        old = row_scores(manifest, before, labels)
        new = row_scores(manifest, after, labels)
        if manifest.task == "classification":
            return judge_correctness(old, new, budget=budget)
        truth = matched_labels(manifest, labels).astype(np.float64)
        spread = float(np.mean(np.abs(truth - np.median(truth))))
        return judge_errors(-old, -new, spread=spread, budget=budget)
    if manifest.task == "classification":
        return judge_agreement(
            predicted(manifest, before), predicted(manifest, after), budget=budget
        )
    names = [manifest.prediction_output] if manifest.task == "regression" else list(before)
    drops = [_judge_output(before[name], after[name], budget) for name in names]
    return max(drops, key=lambda drop: drop.value - drop.budget)


def _judge_output(before: Array, after: Array, budget: float) -> QualityDrop:
    if before.dtype.kind in "biuf":
        return judge_deviation(before, after, budget=budget)
    old, new = before.reshape(len(before), -1), after.reshape(len(after), -1)
    is_same = [a.tolist() == b.tolist() for a, b in zip(old, new, strict=True)]
    drop = judge_correctness(np.ones(len(old)), is_same, budget=budget)
    return drop.model_copy(update={"metric": "disagreement"})


def check_labels(labels: Array) -> None:
    """Refuse labels of which some are missing.

    Raises:
        DataError: Labels are missing on some rows.
    """
    if labels.dtype.kind == "f":
        missing = int(np.sum(~np.isfinite(labels)))
    else:
        missing = sum(1 for value in labels.tolist() if value is None)
    if missing:
        raise DataError(
            f"{missing} of {len(labels)} labels are missing, so no metric can be computed",
            hint="drop the rows without a label, or leave --labels away to compare with the "
            "original model instead",
        )


def count_lost_rows(before: Mapping[str, Array], after: Mapping[str, Array]) -> int:
    """Count rows on which the original gives numbers and the changed model NaN or infinity."""
    n_rows = len(next(iter(before.values())))
    is_lost = np.zeros(n_rows, dtype=bool)
    for name, old in before.items():
        if old.dtype.kind != "f":
            continue
        had = np.isfinite(old.reshape(n_rows, -1)).all(axis=1)
        has = np.isfinite(after[name].reshape(n_rows, -1)).all(axis=1)
        is_lost |= had & ~has
    return int(is_lost.sum())


@dataclass(frozen=True)
class EdgeCheck:
    """What both models said to rows at the edges of what they may see.

    Attributes:
        kinds: The rows that the original answered with numbers, by name.
        lost: Those on which the changed model failed, or gave NaN or infinity.
        largest_deviation: Largest difference of an output, relative to its largest value, over
            the rows that both answered; 0 when there were none.
        deviating: The row with the largest deviation; empty when there was none.
    """

    kinds: tuple[str, ...]
    lost: tuple[str, ...]
    largest_deviation: float
    deviating: str = ""


def edge_rows(feeds: Feeds, signature: Signature | None = None) -> dict[str, dict[str, Array]]:
    """Make one row of each kind of edge from the rows at hand.

    `zeros`, `minima` and `maxima` per feature, `far-below` and `far-above` (floats ten times as
    far out as the range seen), `missing` (floats all NaN) and, where a sequence may have any
    length, `longest` (four times as long) and `shortest` (one step). Text stays as in the first
    row, and whole numbers stay within what was seen: they may be indices. A batch without rows is
    not among them: some kernels of ONNX Runtime end the process on it.

    Args:
        feeds: One array per input, first dimension the rows.
        signature: What the model takes; without it there are no sequences.
    """
    rows: dict[str, dict[str, Array]] = {}
    has_floats = any(array.dtype.kind == "f" for array in feeds.values())
    kinds = ["zeros", "minima", "maxima"]
    for kind in kinds + (["far-below", "far-above", "missing"] if has_floats else []):
        rows[kind] = {name: _edge(array, kind) for name, array in feeds.items()}
    if signature is not None:
        rows.update(_lengths(feeds, signature))
    return rows


def _lengths(feeds: Feeds, signature: Signature) -> dict[str, dict[str, Array]]:
    """Make the longest and the shortest sequence."""
    specs = [spec for spec in signature.inputs if spec.name in feeds]
    rows: dict[str, dict[str, Array]] = {}
    free = {spec.name for spec in specs if len(spec.shape) > 1 and spec.shape[1] == -1}
    lengths = {feeds[name].shape[1] for name in free}
    if len(lengths) != 1:
        return rows
    row = {name: array[:1] for name, array in feeds.items()}
    for kind, length in (("longest", _LONGER * lengths.pop()), ("shortest", 1)):
        rows[kind] = {
            name: np.resize(np.moveaxis(array, 1, 0), (length, 1, *array.shape[2:])).swapaxes(0, 1)
            if name in free
            else array
            for name, array in row.items()
        }
    return rows


def _edge(array: Array, kind: str) -> Array:
    first = array[:1]
    if array.dtype.kind not in "iuf" or array.size == 0:
        return first
    if array.dtype.kind != "f":
        reduced = {"maxima": array.max, "far-above": array.max}.get(kind, array.min)
        return np.asarray(reduced(axis=0, keepdims=True)).astype(array.dtype)
    numbers = np.where(np.isfinite(array), array, 0).astype(np.float64)
    low, high = numbers.min(axis=0, keepdims=True), numbers.max(axis=0, keepdims=True)
    width = np.maximum(high - low, np.maximum(np.abs(high), 1.0))
    row = {
        "zeros": np.zeros_like(low),
        "minima": low,
        "maxima": high,
        "far-below": low - _FAR * width,
        "far-above": high + _FAR * width,
        "missing": np.full_like(low, np.nan),
    }[kind]
    with np.errstate(over="ignore"):
        return np.asarray(row.astype(array.dtype))


def check_edges(before: Runner, after: Runner, feeds: Feeds) -> EdgeCheck:
    """Run both models on the rows of `edge_rows` and compare what they say.

    A row that the original cannot answer with numbers says nothing about the change and is left
    out.

    Args:
        before: The original.
        after: The changed model.
        feeds: Rows that the edges are made from, one array per input.
    """
    kinds: list[str] = []
    lost: list[str] = []
    largest, deviating = 0.0, ""
    for kind, row in edge_rows(feeds, before.signature).items():
        old = _answer(before, row)
        if old is None:
            continue
        kinds.append(kind)
        new = _answer(after, row)
        if new is None:
            lost.append(kind)
            continue
        deviation = max((_deviation(old[name], new[name]) for name in old), default=0.0)
        if deviation > largest:
            largest, deviating = deviation, kind
    return EdgeCheck(tuple(kinds), tuple(lost), largest, deviating)


def _answer(runner: Runner, row: Feeds) -> dict[str, Array] | None:
    """Return the finite outputs for one row, or None when there are none."""
    try:
        with np.errstate(all="ignore"):
            outputs = run_batches(runner, row)
    except FairleadError:
        return None
    floats = [array for array in outputs.values() if array.dtype.kind == "f"]
    return outputs if all(np.isfinite(array).all() for array in floats) else None


def _deviation(old: Array, new: Array) -> float:
    if old.dtype.kind != "f" or old.size == 0:
        return 0.0
    size = float(np.max(np.abs(old.astype(np.float64))))
    gap = float(np.max(np.abs(old.astype(np.float64) - new.astype(np.float64))))
    return gap / size if size > 0 else gap
