"""Upper tails of the distributions that tests need, and rules that combine p-values.

Plain numpy, so that watching needs no statistics library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "benjamini_hochberg",
    "cauchy_combination",
    "chi_square_sf",
    "exceedance_sf",
    "fisher_exact",
    "gamma_sf",
    "holm",
    "kolmogorov_sf",
    "normal_sf",
    "student_to_normal",
]

Floats = NDArray[np.float64]

_TINY = 1e-300
_MAX_STEPS = 2000
_LARGE_TAIL_Z = 0.5244


def normal_sf(z: float) -> float:
    """Return P(Z ≥ z) of a standard normal.

    Examples:
        >>> round(normal_sf(1.959964), 4)
        0.025
    """
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def student_to_normal(t: float, df: float) -> float:
    """Turn a Student t value into the normal value of about the same tail (Wallace, 1959).

    Args:
        t: The t value.
        df: Degrees of freedom, above 0.
    """
    scale = (8 * df + 1) / (8 * df + 3)
    return math.copysign(scale * math.sqrt(df * math.log1p(t * t / df)), t)


def gamma_sf(shape: float, x: float) -> float:
    """Return the regularised upper incomplete gamma function Q(shape, x).

    The series of DLMF 8.11.4 below the mode, the continued fraction of DLMF 8.9.2 above it,
    evaluated by Lentz's method.

    Args:
        shape: Above 0.
        x: At least 0.

    Examples:
        >>> round(gamma_sf(1.0, 2.0), 6)
        0.135335
    """
    if x <= 0:
        return 1.0
    front = math.exp(max(shape * math.log(x) - x - math.lgamma(shape), -745.0))
    if x < shape + 1:
        return max(0.0, 1 - front * _series(shape, x))
    return min(1.0, front * _fraction(shape, x))


def _series(shape: float, x: float) -> float:
    term = 1 / shape
    total = term
    for step in range(1, _MAX_STEPS):
        term *= x / (shape + step)
        total += term
        if term < total * 1e-15:
            break
    return total


def _fraction(shape: float, x: float) -> float:
    b = x + 1 - shape
    c, d = 1 / _TINY, 1 / (b or _TINY)
    h = d
    for step in range(1, _MAX_STEPS):
        numerator = -step * (step - shape)
        b += 2
        d = 1 / ((numerator * d + b) or _TINY)
        c = (b + numerator / c) or _TINY
        h *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return h


def chi_square_sf(statistic: Floats, df: Floats, noncentrality: Floats | float = 0.0) -> Floats:
    """Return P(X ≥ statistic) for a chi-square variable, central or not.

    A noncentral variable is replaced by a scaled central one with the same mean and variance
    (Patnaik, 1949). Tails above 0.3, which no test minds, are those of the cube root's normal
    approximation (Wilson and Hilferty, 1931), right to 0.01; smaller ones are exact.

    Args:
        statistic: At least 0.
        df: Degrees of freedom, above 0.
        noncentrality: At least 0.

    Examples:
        >>> round(float(chi_square_sf(np.array(3.841459), np.array(1.0))), 4)
        0.05
    """
    freedom = np.asarray(df, np.float64)
    extra = np.asarray(noncentrality, np.float64)
    scale = (freedom + 2 * extra) / (freedom + extra)
    effective = (freedom + extra) ** 2 / (freedom + 2 * extra)
    x, v = np.broadcast_arrays(np.asarray(statistic, np.float64) / scale, effective)
    spread = 2 / (9 * v)
    z = (np.cbrt(x / v) - (1 - spread)) / np.sqrt(spread)
    tails = [
        normal_sf(normal) if normal < _LARGE_TAIL_Z else gamma_sf(freedom_of / 2, value / 2)
        for normal, freedom_of, value in zip(
            z.ravel().tolist(), v.ravel().tolist(), x.ravel().tolist(), strict=True
        )
    ]
    return np.array(tails, np.float64).reshape(x.shape)


def kolmogorov_sf(scaled: Floats) -> Floats:
    """Return P(K ≥ scaled) of Kolmogorov's limit law; conservative for columns with ties.

    Args:
        scaled: Largest distance of two distribution functions times sqrt(n m / (n + m)).
    """
    x = np.maximum(np.asarray(scaled, np.float64), 0.0)
    steps = np.arange(1, 101, dtype=np.float64)
    signs = np.where(steps % 2 == 1, 1.0, -1.0)
    with np.errstate(under="ignore"):
        terms = np.exp(-2 * steps**2 * x[..., None] ** 2)
    return np.where(x < 0.2, 1.0, np.clip(2 * (terms @ signs), 0.0, 1.0))


def exceedance_sf(count: int, n_current: int, n_reference: int) -> float:
    """Return the chance that at least `count` new values lie beyond all reference values.

    Exact for exchangeable rows whatever their distribution (Gumbel and von Schelling, 1950);
    conservative with ties.

    Examples:
        >>> exceedance_sf(1, 1, 9)
        0.1
    """
    log_chance = 0.0
    total = n_current + n_reference
    for step in range(count):
        log_chance += math.log((n_current - step) / (total - step))
        if log_chance < -700:
            return 0.0
    return math.exp(log_chance)


def fisher_exact(first: int, n_first: int, second: int, n_second: int) -> float:
    """Return the two-sided p-value of Fisher's exact test, twice the smaller tail.

    Args:
        first: Events among `n_first` rows.
        n_first: Rows of the first sample.
        second: Events among `n_second` rows.
        n_second: Rows of the second sample.
    """
    events, total = first + second, n_first + n_second
    low, high = max(0, events - n_second), min(events, n_first)
    k = np.arange(low, high + 1)
    logs = (
        _log_choose(n_first, k)
        + _log_choose(n_second, events - k)
        - _log_choose(total, np.array([events]))
    )
    chances = np.exp(logs)
    upper = float(chances[k >= first].sum())
    lower = float(chances[k <= first].sum())
    return min(1.0, 2 * min(upper, lower))


def _log_choose(n: int, k: NDArray[np.int64]) -> Floats:
    top = math.lgamma(n + 1)
    return np.array([top - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k.tolist()])


def cauchy_combination(
    p_values: Sequence[Floats], weights: Sequence[float] | None = None
) -> Floats:
    """Combine p-values of dependent tests into one (Liu and Xie, 2020).

    Args:
        p_values: Arrays of one shape, one per test; NaN leaves a test out.
        weights: How much each test counts, above 0; all the same when None.

    Returns:
        The same shape; 1 where every test was left out.
    """
    stacked = np.stack([np.asarray(p, np.float64) for p in p_values])
    is_given = ~np.isnan(stacked)
    # A discrete test often gives exactly 1, whose tangent would drown every other test.
    bounded = np.clip(np.where(is_given, stacked, 0.5), 1e-300, 0.9)
    tangents = np.where(bounded < 1e-8, 1 / (math.pi * bounded), np.tan((0.5 - bounded) * math.pi))
    weight = np.ones(len(stacked)) if weights is None else np.asarray(weights, np.float64)
    given = is_given * weight.reshape(-1, *[1] * (stacked.ndim - 1))
    used = given.sum(axis=0)
    mean = (given * tangents).sum(axis=0) / np.where(used > 0, used, 1.0)
    small = np.minimum(1 / (math.pi * np.maximum(mean, 1e-12)), 1.0)
    combined = np.where(mean > 1e8, small, 0.5 - np.arctan(mean) / math.pi)
    return np.where(used == 0, 1.0, np.clip(combined, 0.0, 1.0))


def holm(p_values: Floats) -> Floats:
    """Adjust p-values so that the chance of any false rejection is bounded (Holm, 1979)."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * (count - np.arange(count))
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjust p-values so that the share of false discoveries is bounded (1995)."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * count / np.arange(1, count + 1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted
