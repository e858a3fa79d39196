"""Whether numeric columns still go together as they did in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Array
from fairlead.core.profile import ColumnProfile, ReferenceProfile
from fairlead.measure.profile import winsorise
from fairlead.measure.tails import normal_sf, student_to_normal
from fairlead.measure.two_samples import DriftLimits
from fairlead.measure.windows import as_numbers, thin

__all__ = ["RelationShift", "has_relations", "relation_tests"]

Floats = NDArray[np.float64]

_MIN_ROWS = 100
_MAX_ROWS = 2500
_MAX_SHOWN = 10
_MIN_SPREAD_ROWS = 30
_NEARLY_ONE = 0.999


@dataclass(frozen=True, slots=True)
class RelationShift:
    """Two numeric inputs whose correlation changed.

    Attributes:
        first: Name of one column.
        second: Name of the other.
        before: Correlation in the reference, winsorised at the 2 % and 98 % quantiles.
        now: Correlation in the window.
        p_value: After correction for the number of pairs and families.
    """

    first: str
    second: str
    before: float
    now: float
    p_value: float

    @property
    def change(self) -> float:
        """Absolute change of the correlation."""
        return abs(self.now - self.before)


def has_relations(profile: ReferenceProfile, window: Mapping[str, Array], n_rows: int) -> bool:
    """Tell whether there are columns and rows enough to compare correlations."""
    names = [name for name in profile.correlated if name in window]
    return len(names) >= 2 and min(n_rows, profile.n_rows) >= _MIN_ROWS


def relation_tests(
    profile: ReferenceProfile,
    window: Mapping[str, Array],
    limits: DriftLimits,
    *,
    share: float,
) -> tuple[RelationShift, ...]:
    """Compare all correlations of numeric inputs with the reference's.

    The difference of two correlations is studentised with the variance of the estimate's
    influence function, which holds for columns that are not normal; the largest of all pairs is
    judged after Bonferroni's correction.

    Args:
        profile: The reference.
        window: Column → array of shape (n_rows,); `has_relations` holds for it.
        limits: What counts as drift.
        share: Part of `limits.alpha` that this test may use.

    Returns:
        The pairs that changed, the largest change first.
    """
    names = [name for name in profile.correlated if name in window]
    n_rows = len(window[names[0]])
    inputs = {column.name: column for column in profile.columns if column.role == "input"}
    columns = [inputs[name] for name in names]
    table = _table(columns, window, n_rows)
    usable = np.flatnonzero(_varies_enough(table, columns))
    if len(usable) < 2:
        return ()
    now, variance = _correlations(table[:, usable])
    places = np.array([profile.correlated.index(name) for name in names])[usable]
    before = np.asarray(profile.correlation, np.float64)[np.ix_(places, places)]
    chosen = [names[place] for place in usable.tolist()]
    sizes = (len(table), profile.n_rows)
    return _changed(chosen, before, now, variance, sizes, limits, limits.alpha * share)


def _table(columns: Sequence[ColumnProfile], window: Mapping[str, Array], n_rows: int) -> Floats:
    rows = thin(n_rows, _MAX_ROWS)
    chosen = slice(None) if rows is None else rows
    values = [as_numbers(column.name, window[column.name])[chosen] for column in columns]
    table = np.stack(values, axis=1)
    table[~np.isfinite(table)] = np.nan
    return winsorise(table, columns)


def _varies_enough(table: Floats, columns: Sequence[ColumnProfile]) -> NDArray[np.bool_]:
    """Leave out columns in which all but a few rows share one value, then or now."""
    varied = np.array([bool(c.quantiles) and c.quantiles[5] < c.quantiles[95] for c in columns])
    is_there = ~np.isnan(table)
    for row in (np.fmin.reduce(table, axis=0), np.fmax.reduce(table, axis=0)):
        varied &= ((table != row) & is_there).sum(axis=0) >= _MIN_SPREAD_ROWS
    return varied


def _correlations(table: Floats) -> tuple[Floats, Floats]:
    """Return correlations, and the variance of one row's influence on Fisher's z of each."""
    is_missing = np.isnan(table)
    means = np.where(is_missing, 0.0, table).sum(axis=0) / (~is_missing).sum(axis=0)
    centred = np.where(is_missing, 0.0, table - means)
    z = centred / np.sqrt((centred**2).mean(axis=0))
    n_rows = len(z)
    squares = z * z
    r = np.clip(z.T @ z / n_rows, -_NEARLY_ONE, _NEARLY_ONE)
    m22 = squares.T @ squares / n_rows
    m31 = (squares * z).T @ z / n_rows
    fourth = np.diag(m22)
    influence = m22 - r * (m31 + m31.T) + r * r / 4 * (fourth[:, None] + fourth[None, :] + 2 * m22)
    return r, np.maximum(influence / (1 - r * r) ** 2, 0.2)


def _changed(
    names: list[str],
    before: Floats,
    now: Floats,
    variance: Floats,
    sizes: tuple[int, int],
    limits: DriftLimits,
    alpha: float,
) -> tuple[RelationShift, ...]:
    first, second = np.triu_indices(len(names), k=1)
    old = np.clip(before[first, second], -_NEARLY_ONE, _NEARLY_ONE)
    new = now[first, second]
    change = np.abs(new - old)
    error = np.sqrt(variance[first, second] * (1 / sizes[0] + 1 / sizes[1]))
    excess = np.maximum(change - limits.min_correlation_change, 0) / np.maximum(change, 1e-12)
    t = np.abs(np.arctanh(new) - np.arctanh(old)) * excess / error
    found = []
    for place in np.argsort(-t, kind="stable")[: 4 * _MAX_SHOWN].tolist():
        z = student_to_normal(float(t[place]), sizes[0] - 1)
        p_value = min(1.0, 2 * normal_sf(z) * len(t) * limits.alpha / alpha)
        if p_value > limits.alpha:
            break
        found.append(
            RelationShift(
                names[int(first[place])],
                names[int(second[place])],
                float(old[place]),
                float(new[place]),
                p_value,
            )
        )
    return tuple(sorted(found, key=lambda shift: -shift.change)[:_MAX_SHOWN])
