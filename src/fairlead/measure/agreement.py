"""Whether a converted model gives what its original gave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlead.core.dataset import Array

__all__ = ["Agreement", "Answers", "agreement_of"]

_TIE = 1e-3
_MAX_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Answers:
    """What a model gave on some rows.

    Attributes:
        predictions: Labels or values, shape (n_rows,).
        scores: Scores per class, shape (n_rows, n_classes), or None.
    """

    predictions: Array
    scores: Array | None = None


@dataclass(frozen=True)
class Agreement:
    """How far two models are apart on the same rows.

    Attributes:
        n_rows: Number of rows compared.
        label_flips: Rows with another predicted label, ties left out; 0 for numbers.
        max_difference: Largest absolute difference of a score, or of a value in units of the
            standard deviation of the original's values.
        is_close: Whether the conversion may be used.
    """

    n_rows: int
    label_flips: int
    max_difference: float

    @property
    def is_close(self) -> bool:
        """Whether no label flips and no score or value is more than 0.001 off."""
        return self.label_flips == 0 and self.max_difference <= _MAX_DIFFERENCE

    def __str__(self) -> str:
        return (
            f"{self.label_flips} of {self.n_rows} predictions differ, "
            f"largest difference {self.max_difference:.3g}"
        )


def agreement_of(original: Answers, converted: Answers) -> Agreement:
    """Compare the answers of two models on the same rows.

    A label that differs is forgiven where the original itself was within 0.001 of a tie. Values
    that are missing in one and not in the other count as infinitely far apart.
    """
    n_rows = len(original.predictions)
    if original.predictions.size != converted.predictions.size:
        return Agreement(n_rows, n_rows, float("inf"))
    if original.predictions.dtype.kind == "f" and converted.predictions.dtype.kind == "f":
        values = original.predictions.astype(np.float64)
        spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
        scale = spread if spread > 0 else max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
        return Agreement(n_rows, 0, _largest(values, converted.predictions) / scale)
    flips = _as_text(original.predictions) != _as_text(converted.predictions)
    if original.scores is None or converted.scores is None:
        return Agreement(n_rows, int(flips.sum()), 0.0)
    if original.scores.shape != converted.scores.shape:
        return Agreement(n_rows, int(flips.sum()), float("inf"))
    ordered = np.sort(original.scores.astype(np.float64), axis=1)
    if ordered.shape[1] > 1:
        flips &= ordered[:, -1] - ordered[:, -2] > _TIE
    return Agreement(n_rows, int(flips.sum()), _largest(original.scores, converted.scores))


def _largest(one: Array, other: Array) -> float:
    first, second = one.astype(np.float64), other.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(first - second))
    return float(np.max(np.where(np.isnan(difference), np.inf, difference), initial=0.0))


def _as_text(labels: Array) -> Array:
    if labels.dtype.kind == "b":
        return labels.astype(np.int64).astype(str)
    if labels.dtype.kind == "f":
        return labels.astype(np.int64).astype(str)
    return labels.astype(str)
