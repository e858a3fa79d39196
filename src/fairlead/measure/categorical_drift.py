"""Tests of one categorical column on the categories of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.profile import ColumnProfile
from fairlead.measure.tails import fisher_exact
from fairlead.measure.two_samples import (
    MIN_EXPECTED,
    DriftLimits,
    chi_square,
    missing_test,
    two_by_two,
)
from fairlead.measure.windows import CategoryCounts

__all__ = ["CategoryTests", "category_tests"]

Ints = NDArray[np.int64]

_LISTING_MARGIN = 4.0
"""Standard deviations above the last listed category that are free of the winner's curse."""


@dataclass(frozen=True, slots=True)
class CategoryTests:
    """P-values by test, NaN where a test says nothing, and Cohen's w corrected for chance."""

    p_values: dict[str, float]
    cohen_w: float


def category_tests(
    column: ColumnProfile, window: CategoryCounts, limits: DriftLimits
) -> CategoryTests:
    """Test one categorical column of a window: shares, unseen categories, missing values."""
    listed = np.array(list(column.categories.values()), dtype=np.int64)
    shares, effect = _shares(column, listed, window, limits)
    n_ref = int(listed.sum()) + column.other_count
    p_values = {
        "chi-square": shares,
        "unseen-categories": _unseen(column, listed, n_ref, window, limits),
        "missing-values": missing_test(
            column.n_rows - n_ref,
            column.n_rows,
            window.missing,
            window.missing + window.present,
            limits,
        ),
    }
    return CategoryTests(p_values, effect)


def _shares(
    column: ColumnProfile, listed: Ints, window: CategoryCounts, limits: DriftLimits
) -> tuple[float, float]:
    n_ref, n_cur = int(listed.sum()) + column.other_count, window.present
    if min(n_ref, n_cur) == 0:
        return float("nan"), 0.0
    pooled = listed + window.listed
    is_own = pooled * min(n_ref, n_cur) >= MIN_EXPECTED * (n_ref + n_cur)
    if column.other_count and len(listed):
        # Categories were listed because they were frequent in the reference: the last ones of
        # the list owe their place to luck, so only clearly frequent ones stand alone.
        least = float(listed.min())
        is_own &= listed >= least + _LISTING_MARGIN * np.sqrt(least)
    before = np.append(listed[is_own], n_ref - listed[is_own].sum())
    now = np.append(window.listed[is_own], n_cur - window.listed[is_own].sum())
    before, now = _without_a_thin_rest(before, now)
    if len(before) < 2:
        return float("nan"), 0.0
    if len(before) == 2:
        found = two_by_two(int(before[0]), n_ref, int(now[0]), n_cur, limits.min_effect)
        return found.p_value, found.effect
    p_values, effects = chi_square(before[None, :], now[None, :], limits.min_effect)
    return float(p_values[0]), float(effects[0])


def _without_a_thin_rest(before: Ints, now: Ints) -> tuple[Ints, Ints]:
    """Join the last bin with the smallest other one when it expects too few rows."""
    n_ref, n_cur = int(before.sum()), int(now.sum())
    rest = int(before[-1] + now[-1])
    if rest == 0:
        return before[:-1], now[:-1]
    if len(before) <= 2 or rest * min(n_ref, n_cur) >= MIN_EXPECTED * (n_ref + n_cur):
        return before, now
    target = int(np.argmin((before + now)[:-1]))
    for counts in (before, now):
        counts[target] += counts[-1]
    return before[:-1], now[:-1]


def _unseen(
    column: ColumnProfile, listed: Ints, n_ref: int, window: CategoryCounts, limits: DriftLimits
) -> float:
    """Test whether more rows are of unseen categories than chance brings.

    Left out of the reference, each of its categories with one row would be unseen, so their share
    estimates how often that happens without drift (Good, 1953).
    """
    if column.other_count or n_ref == 0 or window.present == 0:
        return float("nan")
    if window.unlisted < max(1.0, limits.min_share_change * window.present):
        return float("nan")
    single = int((listed == 1).sum())
    if window.unlisted / window.present <= (single + 1) / n_ref:
        return 1.0
    return fisher_exact(min(single + 1, n_ref), n_ref, window.unlisted, window.present)
