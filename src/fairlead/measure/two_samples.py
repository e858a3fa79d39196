"""Two samples of counts: the tests that numeric and categorical columns share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.measure.tails import chi_square_sf, fisher_exact

__all__ = ["MIN_EXPECTED", "DriftLimits", "TwoSample", "chi_square", "missing_test", "two_by_two"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_GAMMA_KURTOSIS = 6.0
"""Excess kurtosis of a gamma variable times its shape."""

MIN_EXPECTED = 10.0
"""Rows that the smaller sample must expect in a bin before limit laws are trusted."""


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """What counts as drift.

    Attributes:
        alpha: Largest accepted chance of a false alarm per window, all columns together.
        min_effect: Smallest shift that matters, in sd or Cohen's w.
        min_share_change: Smallest change that matters in the share of missing values, and
            smallest share of values outside the reference's range or categories.
        min_correlation_change: Smallest change of a correlation that matters.
        min_rows: Fewest rows that are compared.
        max_rows: Most rows that are compared; more are thinned at random.
    """

    alpha: float = 0.05
    min_effect: float = 0.02
    min_share_change: float = 0.01
    min_correlation_change: float = 0.1
    min_rows: int = 30
    max_rows: int = 20_000


@dataclass(frozen=True, slots=True)
class TwoSample:
    """One test of a difference between two samples.

    Attributes:
        p_value: Chance of such a difference when the true one does not exceed the floor.
        effect: Cohen's w, corrected for what chance alone adds.
    """

    p_value: float
    effect: float


def chi_square(
    reference: Ints, current: Ints, min_effect: float, *, is_cut_at_quantiles: bool = False
) -> tuple[Floats, Floats]:
    """Test the homogeneity of counts in bins, many tables at once.

    Args:
        reference: Shape (n_tables, n_bins); bins that are empty in both samples do not count.
        current: Same shape.
        min_effect: Smallest Cohen's w that matters.
        is_cut_at_quantiles: Whether the bins were cut at quantiles of the reference. Then not its
            counts vary but what the bins hold, and that like a gamma variable, whose tails are
            heavier than a binomial's: the statistic keeps its mean and gains variance.

    Returns:
        P-values and effects, each of shape (n_tables,); NaN for tables of fewer than two bins.
    """
    n_ref = reference.sum(axis=1, keepdims=True).astype(np.float64)
    n_cur = current.sum(axis=1, keepdims=True).astype(np.float64)
    pooled = (reference + current).astype(np.float64)
    df = (pooled > 0).sum(axis=1) - 1.0
    both = np.maximum(n_ref, 1) * np.maximum(n_cur, 1)
    difference = current * n_ref - reference * n_cur
    terms = np.divide(difference**2, pooled * both, out=np.zeros_like(pooled), where=pooled > 0)
    statistic = terms.sum(axis=1)
    effective = (n_ref * n_cur / np.maximum(n_ref + n_cur, 1))[:, 0]
    is_usable = (df >= 1) & (effective > 0)
    freedom = np.where(is_usable, df, 1.0)
    inflation = np.ones(len(freedom))
    if is_cut_at_quantiles:
        per_bin = np.maximum(n_ref[:, 0] / (freedom + 1), 1.0)
        weight = n_cur[:, 0] / np.maximum(n_ref[:, 0] + n_cur[:, 0], 1)
        inflation += _GAMMA_KURTOSIS / 2 / per_bin * weight**2
    noncentrality = effective * min_effect**2 / inflation
    chances = chi_square_sf(statistic / inflation, freedom / inflation, noncentrality)
    excess = np.maximum(statistic - freedom, 0.0) / np.maximum(effective, 1e-12)
    return np.where(is_usable, chances, np.nan), np.where(is_usable, np.sqrt(excess), 0.0)


def two_by_two(
    first: int, n_first: int, second: int, n_second: int, min_effect: float
) -> TwoSample:
    """Test whether a share differs: chi-square for many events, Fisher's exact test for few."""
    if n_first == 0 or n_second == 0:
        return TwoSample(float("nan"), 0.0)
    events, total = first + second, n_first + n_second
    if events in (0, total):
        return TwoSample(float("nan"), 0.0)
    rarest = min(events, total - events) * min(n_first, n_second) / total
    table = (
        np.array([[first, n_first - first]], dtype=np.int64),
        np.array([[second, n_second - second]], dtype=np.int64),
    )
    p_values, effects = chi_square(*table, min_effect)
    effect = float(effects[0])
    if rarest >= MIN_EXPECTED:
        return TwoSample(float(p_values[0]), effect)
    if effect < min_effect:
        return TwoSample(1.0, effect)
    return TwoSample(fisher_exact(first, n_first, second, n_second), effect)


def missing_test(before: int, n_before: int, now: int, n_now: int, limits: DriftLimits) -> float:
    """Test whether the share of missing values changed; NaN when nothing is missing anywhere."""
    if before + now == 0 or n_before == 0 or n_now == 0:
        return float("nan")
    if abs(now / n_now - before / n_before) < limits.min_share_change:
        return 1.0
    return two_by_two(before, n_before, now, n_now, limits.min_effect).p_value
