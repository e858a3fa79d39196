"""Whether a changed model stays within its quality budget, judged on the same rows.

Both models answer the same held-back rows, so the test is paired: only rows on which they differ
say anything. The result is one number, the drop, its one-sided upper 95 % confidence bound, and
a verdict by this rule, in order:

1. `broken`: the drop that was measured exceeds the budget.
2. `proven`: the upper bound lies within the budget as well.
3. `unproven`: the measured drop is within the budget, but the rows are too few to rule out a
   larger one. Whether that is enough is the caller's choice; `rows_to_prove` says how many rows
   like these would settle it.

With 360 rows and a budget of 0.01, no row may get worse for a proof: the bound is then 0.0083.
A single one makes it 0.0131.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairlead.core.errors import DataError
from fairlead.core.values import Value

__all__ = [
    "BudgetVerdict",
    "QualityDrop",
    "binomial_lower",
    "binomial_upper",
    "judge_agreement",
    "judge_correctness",
    "judge_deviation",
    "judge_errors",
]

BudgetVerdict = Literal["proven", "unproven", "broken"]

_ALPHA = 0.05
_LARGEST_RELATIVE_DROP = 1e6
_MANY_EVENTS = 500
"""From here on an approximation of the beta quantile is exact to 5e-6 of its value."""
_MOST_ROWS = 1e8
_FLOOR_RATIO = 0.01
"""A model that is within 1 % of the label's spread counts as being 1 % off: below that, relative
changes of the error say nothing that anyone would notice."""


class QualityDrop(Value):
    """How much quality a change cost, and whether the budget allows it."""

    metric: str
    """What dropped: `accuracy_drop`, `error_increase`, `disagreement` or `output_deviation`."""
    value: float
    """The drop on the rows at hand, as a ratio; negative when the changed model is better."""
    upper: float
    """One-sided upper 95 % confidence bound of the drop; infinite for a single row."""
    budget: float
    n_rows: int
    n_worse: int
    """Rows on which the changed model is worse."""
    n_better: int
    """Rows on which it is better."""
    rows_to_prove: int | None = None
    """Rows like these that would prove the budget is kept; None when no number would, or
    more than 100 million are needed."""

    @property
    def verdict(self) -> BudgetVerdict:
        """`broken`, `proven` or `unproven`, by the rule of this module."""
        if not self.value <= self.budget:
            return "broken"
        return "proven" if self.upper <= self.budget else "unproven"

    def is_within(self, *, allow_unproven: bool = True) -> bool:
        """Whether the change may be shipped."""
        return self.verdict == "proven" or (allow_unproven and self.verdict == "unproven")


def judge_correctness(before: ArrayLike, after: ArrayLike, *, budget: float) -> QualityDrop:
    """Judge a drop in accuracy.

    The bound combines the exact (Clopper-Pearson) limits of the shares of rows that got worse
    and better (Zou & Donner's MOVER, Statistics in Medicine 27, 2008), so it is exact when no
    row got better and stays valid for a handful of differing rows.

    Args:
        before: Whether the original model was right, shape (n_rows,), bool or 0/1.
        after: The same rows on the changed model.
        budget: Largest drop allowed, as a ratio, 0 to 1.

    Raises:
        DataError: There are no rows, or a value is NaN.

    Examples:
        >>> round(judge_correctness([1] * 360, [1] * 359 + [0], budget=0.01).upper, 4)
        0.0131
    """
    old, new = _paired(before, after, "correctness")
    new = np.where(np.isfinite(new), new, 0.0)
    n_rows = len(old)
    worse, better = int(np.sum(new < old)), int(np.sum(new > old))
    return QualityDrop(
        metric="accuracy_drop",
        value=(worse - better) / n_rows,
        upper=_difference_upper(worse, better, n_rows),
        budget=budget,
        n_rows=n_rows,
        n_worse=worse,
        n_better=better,
        rows_to_prove=_rows_to_prove(worse / n_rows, better / n_rows, budget),
    )


def judge_agreement(before: ArrayLike, after: ArrayLike, *, budget: float) -> QualityDrop:
    """Judge a change without labels: the share of rows whose predicted class changed.

    Args:
        before: Classes that the original model predicts, shape (n_rows,), numbers or text.
        after: Classes that the changed model predicts.
        budget: Largest share allowed, 0 to 1.

    Raises:
        DataError: There are no rows, or the lengths differ.
    """
    old, new = np.asarray(before).ravel(), np.asarray(after).ravel()
    _check_lengths(len(old), len(new), "predictions")
    is_same = np.array([bool(a == b) for a, b in zip(old.tolist(), new.tolist(), strict=True)])
    drop = judge_correctness(np.ones(len(old)), is_same, budget=budget)
    return drop.model_copy(update={"metric": "disagreement"})


def judge_errors(
    before: ArrayLike, after: ArrayLike, *, spread: float, budget: float
) -> QualityDrop:
    """Judge a relative increase of the mean absolute error.

    The bound is Fieller's for a ratio of means (Journal of the Royal Statistical Society B 16,
    1954). An original error below 1 % of the label's spread counts as 1 %.

    Args:
        before: Absolute error of the original model per row, shape (n_rows,).
        after: The same rows on the changed model; infinite where it gave no number.
        spread: Mean absolute deviation of the labels from their median.
        budget: Largest relative increase allowed.

    Raises:
        DataError: There are no rows, or an error of the original is not a finite number.
    """
    old, new = _paired(before, after, "absolute errors")
    floor = _FLOOR_RATIO * spread
    scale = old if old.mean() > floor else np.full(len(old), max(floor, np.finfo(float).tiny))
    return _ratio_drop("error_increase", new - old, scale, budget)


def judge_deviation(before: ArrayLike, after: ArrayLike, *, budget: float) -> QualityDrop:
    """Judge a change without labels on numeric outputs.

    Rows of several values (embeddings, scores) are compared by `|x - y|² / (|x|² + |y|²)`, which
    is 1 - cosine for vectors of equal length and also sees a change of length. Single values are
    compared by `(x - y)²` relative to the variance of the original, which is 1 - R².

    Args:
        before: Outputs of the original, shape (n_rows, …).
        after: Outputs of the changed model; a row with NaN or infinity breaks any budget.
        budget: Largest mean deviation allowed, 0 to 1.

    Raises:
        DataError: There are no rows, the shapes differ, or the original is not finite.
    """
    old, new = _rows_of(before), _rows_of(after)
    _check_lengths(len(old), len(new), "outputs")
    if old.shape != new.shape:
        raise DataError(
            f"the outputs have shapes {old.shape} and {new.shape}",
            hint="compare two versions of the same model",
        )
    _check_finite(old, "outputs")
    with np.errstate(all="ignore"):
        deviation = _row_deviation(old, new)
    deviation = np.where(np.isfinite(new).all(axis=1), deviation, np.inf)
    return _ratio_drop("output_deviation", deviation, np.ones(len(old)), budget)


def _row_deviation(old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.sum((old - new) ** 2, axis=1)
    if old.shape[1] == 1:
        variance = float(np.var(old)) or float(np.mean(old**2)) or 1.0
        return np.asarray(squares / variance)
    size = np.sum(old**2, axis=1) + np.sum(new**2, axis=1)
    return np.where(size > 0, squares / np.where(size > 0, size, 1.0), 0.0)


def _ratio_drop(
    metric: str, change: NDArray[np.float64], scale: NDArray[np.float64], budget: float
) -> QualityDrop:
    n_rows = len(change)
    value, upper = math.inf, math.inf
    if np.isfinite(change).all():
        value = float(change.mean() / scale.mean())
        upper = _fieller_upper(change, scale)
    return QualityDrop(
        metric=metric,
        value=value,
        upper=upper,
        budget=budget,
        n_rows=n_rows,
        n_worse=int(np.sum(change > 0)),
        n_better=int(np.sum(change < 0)),
        rows_to_prove=_rows_for_mean(value, upper, n_rows, budget),
    )


def _rows_for_mean(value: float, upper: float, n_rows: int, budget: float) -> int | None:
    """Rows at which the bound, which shrinks with the root of their number, meets the budget."""
    if not (math.isfinite(upper) and value < budget):
        return n_rows if upper <= budget else None
    return max(math.ceil(n_rows * ((upper - value) / (budget - value)) ** 2), 2)


def _fieller_upper(change: NDArray[np.float64], scale: NDArray[np.float64]) -> float:
    n_rows = len(change)
    if n_rows < 2:
        return math.inf
    quantile = _t_quantile(n_rows - 1)

    def excess(ratio: float) -> float:
        rest = change - ratio * scale
        return float(rest.mean() + quantile * rest.std(ddof=1) / math.sqrt(n_rows))

    low = float(change.mean() / scale.mean())
    step = max(abs(low), 1e-6)
    while excess(low + step) > 0:
        step *= 2
        if step > _LARGEST_RELATIVE_DROP:
            return math.inf
    return _bisect(lambda ratio: excess(ratio) > 0, low, low + step)


def _t_quantile(degrees: int) -> float:
    """Return Student's one-sided 95 % quantile (Abramowitz & Stegun 26.7.5)."""
    if degrees == 1:
        return 6.3138
    z = NormalDist().inv_cdf(1 - _ALPHA)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / float(degrees) ** (power + 1) for power, term in enumerate(terms))


def _difference_upper(worse: float, better: float, n_rows: float) -> float:
    p_worse, p_better = worse / n_rows, better / n_rows
    up = binomial_upper(worse, n_rows) - p_worse
    down = p_better - binomial_lower(better, n_rows)
    # A row cannot get better and worse at once, so the two shares are negatively correlated.
    spread = math.sqrt(p_worse * (1 - p_worse) * p_better * (1 - p_better))
    correlation = -p_worse * p_better / spread if spread > 0 else 0.0
    return p_worse - p_better + math.sqrt(up**2 + down**2 - 2 * correlation * up * down)


def _rows_to_prove(p_worse: float, p_better: float, budget: float) -> int | None:
    if p_worse - p_better >= budget:
        return None
    low, high = 1.0, 2.0
    while _difference_upper(p_worse * high, p_better * high, high) > budget:
        low, high = high, high * 2
        if high > _MOST_ROWS:
            return None
    return math.ceil(
        _bisect(
            lambda n: _difference_upper(p_worse * n, p_better * n, n) > budget,
            low,
            high,
            steps=20,
        )
    )


def binomial_upper(events: float, n_rows: float, *, alpha: float = _ALPHA) -> float:
    """Return the exact one-sided upper limit of a share (Clopper & Pearson, Biometrika 26, 1934).

    Args:
        events: How often it happened, 0 to `n_rows`.
        n_rows: How often it could have.
        alpha: One minus the confidence.

    Examples:
        >>> round(binomial_upper(0, 360), 6)
        0.008287
    """
    if events >= n_rows:
        return 1.0
    a, b = events + 1, n_rows - events
    start = _beta_quantile_guess(a, b, NormalDist().inv_cdf(1 - alpha))
    if min(a, b) > _MANY_EVENTS:
        return start
    return _beta_quantile(a, b, 1 - alpha, start)


def _beta_quantile_guess(a: float, b: float, z: float) -> float:
    """Return a quantile of the beta distribution, within 5e-6 for large a and b (A&S 26.5.22)."""
    if b <= 0.5:
        return a / (a + b)
    mean = (z * z - 3) / 6
    size = 2 / (1 / (2 * a - 1) + 1 / (2 * b - 1))
    skew = (1 / (2 * b - 1) - 1 / (2 * a - 1)) * (mean + 5 / 6 - 2 / (3 * size))
    w = -z * math.sqrt(max(size + mean, 0.0)) / size - skew
    return a / (a + b * math.exp(min(2 * w, 700.0)))


def _beta_quantile(a: float, b: float, probability: float, start: float) -> float:
    """Return a quantile of the beta distribution by Newton's method within known limits."""
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    low, high, p = 0.0, 1.0, min(max(start, 1e-12), 1 - 1e-12)
    for _ in range(100):
        gap = _incomplete_beta(a, b, p) - probability
        low, high = (p, high) if gap < 0 else (low, p)
        slope = math.exp(log_scale + (a - 1) * math.log(p) + (b - 1) * math.log1p(-p))
        step = p - gap / slope if slope > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - p) <= 1e-13 * p:
            return following
        p = following
    return p


def binomial_lower(events: float, n_rows: float, *, alpha: float = _ALPHA) -> float:
    """Return the exact one-sided lower limit of a share; see `binomial_upper`."""
    return 1 - binomial_upper(n_rows - events, n_rows, alpha=alpha)


def _bisect(
    is_below: Callable[[float], bool], low: float, high: float, *, steps: int = 60
) -> float:
    """Return the point where `is_below` turns from true to false, from above."""
    for _ in range(steps):
        middle = (low + high) / 2
        if is_below(middle):
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function by its continued fraction (Lentz)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    return front * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = result
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            result *= d * c
        if abs(result - before) <= 1e-14 * abs(result):
            break
    return result


def _paired(
    before: ArrayLike, after: ArrayLike, what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    old = np.asarray(before, dtype=np.float64).ravel()
    new = np.asarray(after, dtype=np.float64).ravel()
    _check_lengths(len(old), len(new), what)
    _check_finite(old, what)
    return old, np.where(np.isnan(new), np.inf, new)


def _check_lengths(n_before: int, n_after: int, what: str) -> None:
    if n_before != n_after or n_before == 0:
        raise DataError(
            f"the {what} of {n_before} and {n_after} rows cannot be paired",
            hint="run both models on the same rows, at least one",
        )


def _check_finite(values: NDArray[np.float64], what: str) -> None:
    bad = int(np.sum(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
    if bad:
        raise DataError(
            f"the {what} of the original model are not finite on {bad} of {len(values)} rows, "
            "so no budget can be judged against them",
            hint="fill or drop missing values and labels, or give rows that the model can answer",
        )


def _rows_of(outputs: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(outputs, dtype=np.float64)
    return array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
