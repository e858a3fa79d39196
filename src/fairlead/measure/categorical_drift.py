"""Tests of one categorical column on the categories of the reference."""

from __future__ import annotations

from collections.abc import Sequence
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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LISTING_MARGIN = 4.0
"""Standard deviations above the last listed category that are free of the winner's curse."""


@dataclass(frozen=True)
class CategoryTests:
    """P-values and effects of categorical columns.

    Attributes:
        p_values: Test → shape (n_columns,); NaN where a test says nothing.
        cohen_w: Cohen's w of the shares, corrected for chance, shape (n_columns,).
    """

    p_values: dict[str, Floats]
    cohen_w: Floats


def category_tests(
    counted: Sequence[tuple[ColumnProfile, CategoryCounts]], limits: DriftLimits
) -> CategoryTests:
    """Test categorical columns of a window: shares, unseen categories, missing values."""
    listed = [np.array(list(column.categories.values()), dtype=np.int64) for column, _ in counted]
    shares, effects = _shares(counted, listed, limits)
    unseen, missing = np.full(len(counted), np.nan), np.full(len(counted), np.nan)
    for index, (column, window) in enumerate(counted):
        n_ref = int(listed[index].sum()) + column.other_count
        unseen[index] = _unseen(column, listed[index], n_ref, window, limits)
        missing[index] = missing_test(
            column.n_rows - n_ref,
            column.n_rows,
            window.missing,
            window.missing + window.present,
            limits,
        )
    p_values = {"chi-square": shares, "unseen-categories": unseen, "missing-values": missing}
    return CategoryTests(p_values, effects)


def _shares(
    counted: Sequence[tuple[ColumnProfile, CategoryCounts]],
    listed: Sequence[Ints],
    limits: DriftLimits,
) -> tuple[Floats, Floats]:
    """Test the shares of all columns: two bins exactly, more in one chi-square."""
    tables = [
        _table(column, counts, window)
        for (column, window), counts in zip(counted, listed, strict=True)
    ]
    width = max(len(before) for before, _ in tables)
    padded = np.zeros((2, len(tables), max(width, 2)), dtype=np.int64)
    for index, pair in enumerate(tables):
        padded[:, index, : len(pair[0])] = pair
    p_values, effects = chi_square(padded[0], padded[1], limits.min_effect)
    for index, (before, now) in enumerate(tables):
        if len(before) == 2:
            found = two_by_two(
                int(before[0]), int(before.sum()), int(now[0]), int(now.sum()), limits.min_effect
            )
            p_values[index], effects[index] = found.p_value, found.effect
    return p_values, effects


def _table(column: ColumnProfile, listed: Ints, window: CategoryCounts) -> tuple[Ints, Ints]:
    """Return the counts of the bins that expect enough rows; the rest is the last bin."""
    n_ref, n_cur = int(listed.sum()) + column.other_count, window.present
    if min(n_ref, n_cur) == 0:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    pooled = listed + window.listed
    is_own = pooled * min(n_ref, n_cur) >= MIN_EXPECTED * (n_ref + n_cur)
    if column.other_count and len(listed):
        # Categories were listed because they were frequent in the reference: the last ones of
        # the list owe their place to luck, so only clearly frequent ones stand alone.
        least = float(listed.min())
        is_own &= listed >= least + _LISTING_MARGIN * np.sqrt(least)
    before = np.append(listed[is_own], n_ref - listed[is_own].sum())
    now = np.append(window.listed[is_own], n_cur - window.listed[is_own].sum())
    return _without_a_thin_rest(before, now)


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
