"""Quality metrics with 95 % confidence intervals, on plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import Score
from fairlead.core.dataset import Array

__all__ = ["classification_scores", "regression_scores", "roc_auc", "wilson_interval"]

Floats = NDArray[np.float64]

_Z = 1.959963984540054
_SEED = 0
_RESAMPLES = 400
_MAX_DRAWS = 20_000_000


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, 1927).

    Examples:
        >>> low, high = wilson_interval(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    ratio = successes / total
    centre = ratio + _Z**2 / (2 * total)
    half = _Z * float(np.sqrt(ratio * (1 - ratio) / total + _Z**2 / (4 * total**2)))
    scale = 1 + _Z**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def classification_scores(
    guess: Array, truth: Array, classes: Sequence[str | int], table: Floats | None
) -> tuple[Score, ...]:
    """Score predicted classes.

    Args:
        guess: Predicted labels, shape (n_rows,).
        truth: True labels, shape (n_rows,), same dtype.
        classes: Labels in the order of the columns of `table`.
        table: Scores, shape (n_rows, n_classes), or (n_rows, 1) for two classes; None when there
            are none.
    """
    n_rows = len(truth)
    hits = int(np.sum(guess == truth))
    low, high = wilson_interval(hits, n_rows)
    scores = [
        Score(metric="accuracy", value=hits / n_rows, sample_size=n_rows, ci_low=low, ci_high=high),
        _macro_f1(guess, truth),
    ]
    if table is None or len(classes) < 2:
        return tuple(scores)
    places = _places(truth, classes)
    full = np.concatenate([1 - table, table], axis=1) if table.shape[1] == 1 else table
    if full.shape[1] != len(classes):
        return tuple(scores)
    if _are_probabilities(full):
        chosen = np.clip(full[np.arange(n_rows), places], 1e-15, 1.0)
        scores.append(_mean_score("log_loss", -np.log(chosen)))
    if len(classes) == 2 and 0 < places.sum() < n_rows:
        value, half = roc_auc(full[:, 1] - full[:, 0], places == 1)
        scores.append(
            Score(
                metric="roc_auc",
                value=value,
                sample_size=n_rows,
                ci_low=max(0.0, value - half),
                ci_high=min(1.0, value + half),
            )
        )
    return tuple(scores)


def _places(truth: Array, classes: Sequence[str | int]) -> NDArray[np.int64]:
    place_of = {label: place for place, label in enumerate(classes)}
    return np.array([place_of[label] for label in truth.tolist()], dtype=np.int64)


def _are_probabilities(table: Floats) -> bool:
    if not np.isfinite(table).all() or table.min() < -1e-6:
        return False
    return bool(np.abs(table.sum(axis=1) - 1).max() < 1e-3)


def _macro_f1(guess: Array, truth: Array) -> Score:
    labels = {
        label: place
        for place, label in enumerate(dict.fromkeys([*truth.tolist(), *guess.tolist()]))
    }
    rows = np.array([labels[label] for label in truth.tolist()], dtype=np.int64)
    columns = np.array([labels[label] for label in guess.tolist()], dtype=np.int64)
    cells, counts = np.unique(rows * len(labels) + columns, return_counts=True)
    n_rows = len(truth)
    drawn = np.random.default_rng(_SEED).multinomial(n_rows, counts / n_rows, size=_RESAMPLES)
    values = _f1_of(np.vstack([counts, drawn]), cells, len(labels))
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Score(
        metric="macro_f1",
        value=float(values[0]),
        sample_size=n_rows,
        ci_low=float(low),
        ci_high=float(high),
    )


def _f1_of(counts: NDArray[np.int64], cells: NDArray[np.int64], n_classes: int) -> Floats:
    """Return macro F1 per row of cell counts, over the classes that are true or predicted there."""
    row, column = cells // n_classes, cells % n_classes
    by_truth = np.zeros((len(counts), n_classes))
    by_guess = np.zeros((len(counts), n_classes))
    hits = np.zeros((len(counts), n_classes))
    for place in range(len(cells)):
        by_truth[:, row[place]] += counts[:, place]
        by_guess[:, column[place]] += counts[:, place]
        if row[place] == column[place]:
            hits[:, row[place]] += counts[:, place]
    total = by_truth + by_guess
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return np.asarray(f1.sum(axis=1) / (total > 0).sum(axis=1), dtype=np.float64)


def roc_auc(scores: Floats, is_positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the area under the ROC curve and half the width of its 95 % interval.

    The variance is that of DeLong, DeLong and Clarke-Pearson (1988), computed from midranks.

    Args:
        scores: Shape (n_rows,), higher means more positive.
        is_positive: Shape (n_rows,), with at least one of each.

    Examples:
        >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))[0]
        0.75
    """
    positive, negative = scores[is_positive], scores[~is_positive]
    n_pos, n_neg = len(positive), len(negative)
    ranks = _midranks(np.concatenate([positive, negative]))
    by_positive = (ranks[:n_pos] - _midranks(positive)) / n_neg
    by_negative = 1 - (ranks[n_pos:] - _midranks(negative)) / n_pos
    variance = 0.0
    if n_pos > 1:
        variance += float(by_positive.var(ddof=1)) / n_pos
    if n_neg > 1:
        variance += float(by_negative.var(ddof=1)) / n_neg
    return float(by_positive.mean()), _Z * float(np.sqrt(variance))


def _midranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=np.float64)


def regression_scores(guess: Floats, truth: Floats) -> tuple[Score, ...]:
    """Score predicted numbers; intervals by the percentile bootstrap over rows (Efron, 1979).

    Args:
        guess: Predicted values, shape (n_rows,).
        truth: True values, shape (n_rows,).
    """
    errors = guess - truth
    metrics: tuple[tuple[str, Callable[[Floats, Floats], float], bool], ...] = (
        ("r2", _r2, True),
        ("rmse", lambda e, _: float(np.sqrt(np.mean(e**2))), False),
        ("mae", lambda e, _: float(np.mean(np.abs(e))), False),
    )
    n_rows = len(truth)
    rng = np.random.default_rng(_SEED)
    repeats = int(min(_RESAMPLES, max(50, _MAX_DRAWS // n_rows)))
    drawn: list[list[float]] = [[] for _ in metrics]
    for _ in range(repeats):
        rows = rng.integers(0, n_rows, n_rows)
        for values, (_, measure, _) in zip(drawn, metrics, strict=True):
            values.append(measure(errors[rows], truth[rows]))
    return tuple(
        _bootstrapped(name, measure(errors, truth), values, n_rows, is_higher_better)
        for values, (name, measure, is_higher_better) in zip(drawn, metrics, strict=True)
    )


def _bootstrapped(
    name: str, value: float, drawn: list[float], n_rows: int, is_higher_better: bool
) -> Score:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Score(
        metric=name,
        value=value,
        sample_size=n_rows,
        ci_low=float(low),
        ci_high=float(high),
        is_higher_better=is_higher_better,
    )


def _r2(errors: Floats, truth: Floats) -> float:
    """Return the coefficient of determination; 0 where the truth does not vary."""
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return 1 - float(np.sum(errors**2)) / spread if spread > 0 else 0.0


def _mean_score(name: str, losses: Floats) -> Score:
    half = _Z * float(losses.std(ddof=1)) / np.sqrt(len(losses)) if len(losses) > 1 else 0.0
    value = float(losses.mean())
    return Score(
        metric=name,
        value=value,
        sample_size=len(losses),
        ci_low=max(0.0, value - float(half)),
        ci_high=value + float(half),
        is_higher_better=False,
    )
