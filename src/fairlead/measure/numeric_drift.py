"""Tests of numeric columns on the bins of the reference, all columns at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.measure.tails import exceedance_sf, kolmogorov_sf, normal_sf
from fairlead.measure.two_samples import (
    MIN_EXPECTED,
    DriftLimits,
    chi_square,
    missing_test,
    two_by_two,
)
from fairlead.measure.windows import NumericCounts, NumericReference

__all__ = ["NumericTests", "numeric_tests"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_KS_PER_SIGMA = 0.4
"""A small shift of d sd moves a normal distribution function by at most 0.399 d."""

_BOTH_SIDES = 1.2
"""Tail of the weighted absolute bridge over twice the normal tail at p = 0.001: between 0.99 and
1.05 for normal, uniform, lognormal, Cauchy and Poisson columns."""


@dataclass(frozen=True)
class NumericTests:
    """P-values and effects of numeric columns.

    Attributes:
        p_values: Test → shape (n_columns,); NaN where a test says nothing.
        distance: Wasserstein distance in reference standard deviations, shape (n_columns,).
        cohen_w: Cohen's w of the bin shares, corrected for chance, shape (n_columns,).
    """

    p_values: dict[str, Floats]
    distance: Floats
    cohen_w: Floats


def numeric_tests(
    reference: NumericReference, window: NumericCounts, limits: DriftLimits
) -> NumericTests:
    """Test every numeric column of a window.

    The calibrated Wasserstein distance, Kolmogorov-Smirnov and chi-square speak where at least
    three bins expect enough rows; a two-bin table is tested exactly; values beyond the
    reference's range and missing values have exact tests of their own.
    """
    kept = _kept_edges(reference, window)
    is_fine = kept.sum(axis=1) >= 2
    before = reference.below / np.maximum(reference.present, 1)[:, None]
    now = window.below / np.maximum(window.present, 1)[:, None]
    gap = np.where(kept, np.abs(now - before), 0.0)
    n_ref, n_cur = reference.present.astype(float), window.present.astype(float)
    effective = n_ref * n_cur / np.maximum(n_ref + n_cur, 1)
    distance, p_wasserstein = _wasserstein(reference, window, kept, gap, limits.min_effect)
    largest = gap.max(axis=1, initial=0.0) - _KS_PER_SIGMA * limits.min_effect
    p_ks = kolmogorov_sf(np.sqrt(effective) * np.maximum(largest, 0.0))
    p_chi, cohen_w = chi_square(
        _binned(reference.below, reference.present, kept),
        _binned(window.below, window.present, kept),
        limits.min_effect,
        is_cut_at_quantiles=True,
    )
    p_split = np.full(len(kept), np.nan)
    for index in np.flatnonzero(~is_fine):
        p_split[index], cohen_w[index] = _split(reference, window, kept, int(index), limits)
    p_values = {
        "wasserstein": np.where(is_fine & (reference.std > 0), p_wasserstein, np.nan),
        "kolmogorov-smirnov": np.where(is_fine, p_ks, np.nan),
        "chi-square": np.where(is_fine, p_chi, np.nan),
        "exact-split": p_split,
        "out-of-range": _out_of_range(reference, window, limits),
        "missing-values": _missing(reference, window, limits),
    }
    beyond = np.divide(
        window.beyond, reference.std, out=np.zeros(len(kept)), where=reference.std > 0
    )
    return NumericTests(p_values, distance + beyond, cohen_w)


def _kept_edges(reference: NumericReference, window: NumericCounts) -> Mask:
    """Keep the edges whose bins expect enough rows in the smaller sample.

    The choice depends on the pooled counts alone, which carry no news of a difference.
    """
    pooled = reference.below + window.below
    totals = reference.present + window.present
    smaller = np.minimum(reference.present, window.present)
    needs = MIN_EXPECTED * totals / np.maximum(smaller, 1)
    kept = np.isfinite(reference.edges)
    bins = np.diff(np.concatenate([pooled, totals[:, None]], axis=1), axis=1, prepend=0)
    is_edge = np.concatenate([kept, np.ones((len(kept), 1), dtype=bool)], axis=1)
    is_thin = ((bins < needs[:, None]) & is_edge).any(axis=1) | (smaller == 0)
    for index in np.flatnonzero(is_thin).tolist():
        kept[index] = False
        if smaller[index] == 0:
            continue
        need, total, last = float(needs[index]), int(totals[index]), 0
        size = len(reference.columns[index].edges)
        for place, count in enumerate(pooled[index, :size].tolist()):
            if count - last >= need and total - count >= need:
                kept[index, place] = True
                last = count
    return kept


def _binned(below: Ints, present: Ints, kept: Mask) -> Ints:
    """Turn counts under edges into counts in bins; a dropped edge leaves an empty bin."""
    steps = np.maximum.accumulate(np.where(kept, below, 0), axis=1)
    full = np.concatenate([steps, present[:, None]], axis=1)
    return np.diff(full, axis=1, prepend=0)


def _widths(reference: NumericReference, kept: Mask) -> Floats:
    """Return how much of the axis every kept edge stands for, in standard deviations."""
    edges = np.where(np.isfinite(reference.edges), reference.edges, 0.0)
    before = np.maximum.accumulate(np.where(kept, edges, -np.inf), axis=1)
    before = np.concatenate([np.full((len(kept), 1), -np.inf), before[:, :-1]], axis=1)
    after = np.minimum.accumulate(np.where(kept, edges, np.inf)[:, ::-1], axis=1)[:, ::-1]
    after = np.concatenate([after[:, 1:], np.full((len(kept), 1), np.inf)], axis=1)
    low, high = reference.low[:, None], reference.high[:, None]
    left = np.where(np.isfinite(before), (before + edges) / 2, np.minimum(low, edges))
    right = np.where(np.isfinite(after), (after + edges) / 2, np.maximum(high, edges))
    scale = np.where(reference.std > 0, reference.std, np.inf)[:, None]
    return np.where(kept, (right - left) / scale, 0.0)


def _wasserstein(
    reference: NumericReference, window: NumericCounts, kept: Mask, gap: Floats, floor: float
) -> tuple[Floats, Floats]:
    """Return Wasserstein distances in sd and their p-values.

    Without drift the distance times sqrt(n m / (n + m)) is the sum of the absolute values of a
    Brownian bridge at the edges, weighted by their widths. Large values arise when the bridge
    stays on one side, and then the sum is the absolute value of a normal variable whose variance
    is that of the binned column, so twice the normal tail is the tail but for a small factor.
    """
    width = _widths(reference, kept)
    distance = (gap * width).sum(axis=1)
    total = np.maximum(reference.present + window.present, 1)[:, None]
    pooled = _binned(reference.below + window.below, total[:, 0], kept) / total
    position = np.concatenate([np.zeros((len(width), 1)), np.cumsum(width, axis=1)], axis=1)
    mean = (pooled * position).sum(axis=1)
    variance = (pooled * position**2).sum(axis=1) - mean**2
    inverse = 1 / np.maximum(reference.present, 1) + 1 / np.maximum(window.present, 1)
    excess = np.maximum(distance - floor, 0.0)
    z = excess / np.sqrt(np.maximum(variance * inverse, 1e-300))
    tails = np.array([normal_sf(value) for value in z.tolist()])
    return distance, np.minimum(2 * _BOTH_SIDES * tails, 1.0)


def _split(
    reference: NumericReference,
    window: NumericCounts,
    kept: Mask,
    index: int,
    limits: DriftLimits,
) -> tuple[float, float]:
    """Test one column in two bins: at its only usable edge, or the fullest bin and the rest."""
    n_ref, n_cur = int(reference.present[index]), int(window.present[index])
    if kept[index].any():
        place = int(np.argmax(kept[index]))
        first, second = int(reference.below[index, place]), int(window.below[index, place])
    else:
        everything = np.ones_like(kept[index : index + 1])
        one = slice(index, index + 1)
        bins = _binned(reference.below[one], reference.present[one], everything)[0]
        current = _binned(window.below[one], window.present[one], everything)[0]
        place = int(np.argmax(bins + current))
        first, second = int(bins[place]), int(current[place])
    found = two_by_two(first, n_ref, second, n_cur, limits.min_effect)
    return found.p_value, found.effect


def _out_of_range(
    reference: NumericReference, window: NumericCounts, limits: DriftLimits
) -> Floats:
    p_values = np.full(len(reference.columns), np.nan)
    for index in np.flatnonzero((reference.present > 0) & (window.present > 0)):
        under, over = int(window.under[index]), int(window.over[index])
        n_cur, n_ref = int(window.present[index]), int(reference.present[index])
        if under + over < limits.min_share_change * n_cur:
            continue
        smallest = min(exceedance_sf(count, n_cur, n_ref) for count in (under, over))
        p_values[index] = min(1.0, 2 * smallest)
    return p_values


def _missing(reference: NumericReference, window: NumericCounts, limits: DriftLimits) -> Floats:
    p_values = np.full(len(reference.columns), np.nan)
    for index, column in enumerate(reference.columns):
        gone = column.n_rows - int(reference.present[index])
        p_values[index] = missing_test(
            gone, column.n_rows, window.n_rows - int(window.present[index]), window.n_rows, limits
        )
    return p_values
