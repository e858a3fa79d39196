"""A reference profile as arrays, and a current window counted on the same bins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Array
from fairlead.core.errors import DataError
from fairlead.core.profile import ColumnProfile
from fairlead.measure.profile import category_keys

__all__ = [
    "CategoryCounts",
    "NumericCounts",
    "NumericReference",
    "as_numbers",
    "count_categorical",
    "count_numeric",
    "thin",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FEW_VALUES = 2000


@dataclass(frozen=True)
class NumericReference:
    """The numeric columns of a profile side by side.

    Attributes:
        columns: The profiles, `n_columns` of them.
        edges: Bin edges, shape (n_columns, n_edges), padded with infinity.
        below: Reference rows under each edge, shape (n_columns, n_edges).
        present: Reference rows with a value, shape (n_columns,).
        std: Standard deviations, shape (n_columns,); 0 for constant and empty columns.
        low: The 1 % quantiles, shape (n_columns,).
        high: The 99 % quantiles, shape (n_columns,).
    """

    columns: tuple[ColumnProfile, ...]
    edges: Floats
    below: Ints
    present: Ints
    std: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, columns: tuple[ColumnProfile, ...]) -> NumericReference:
        """Lay numeric profiles side by side."""
        width = max((len(column.edges) for column in columns), default=0)
        edges = np.full((len(columns), width), np.inf)
        present = np.array([sum(column.counts) for column in columns], dtype=np.int64)
        below = np.repeat(present[:, None], width, axis=1)
        for index, column in enumerate(columns):
            size = len(column.edges)
            edges[index, :size] = column.edges
            below[index, :size] = np.cumsum(column.counts[:-1]) if size else 0
        low, high = (
            np.array([c.quantiles[place] if c.quantiles else 0.0 for c in columns])
            for place in (1, 99)
        )
        std = np.array([column.std or 0.0 for column in columns])
        return cls(columns, edges, below, present, std, low, high)


@dataclass(frozen=True)
class NumericCounts:
    """A window counted on the edges of a reference.

    Attributes:
        below: Rows under each edge, shape (n_columns, n_edges).
        present: Rows with a finite value, shape (n_columns,).
        n_rows: Rows of the window.
        under: Rows under the smallest reference value, shape (n_columns,).
        over: Rows above the largest reference value, shape (n_columns,).
        beyond: Mean distance of the rows from the reference's range, shape (n_columns,).
        mean: Shape (n_columns,); NaN where nothing is present.
    """

    below: Ints
    present: Ints
    n_rows: int
    under: Ints
    over: Ints
    beyond: Floats
    mean: Floats


@dataclass(frozen=True)
class CategoryCounts:
    """One categorical column of a window.

    Attributes:
        listed: Rows per listed category, shape (n_categories,).
        unlisted: Rows in other categories.
        missing: Rows without a value.
        examples: Some of the categories that the profile does not list, the most frequent first.
    """

    listed: Ints
    unlisted: int
    missing: int
    examples: tuple[str, ...]

    @property
    def present(self) -> int:
        """Rows with a value."""
        return int(self.listed.sum()) + self.unlisted


def thin(n_rows: int, max_rows: int, *, seed: int = 0) -> NDArray[np.int64] | None:
    """Choose at most `max_rows` rows, one at random from each equally long stretch.

    Returns:
        Row numbers in ascending order, or None when all rows are kept.
    """
    if n_rows <= max_rows:
        return None
    starts = np.linspace(0, n_rows, max_rows + 1)
    within = np.random.default_rng(seed).random(max_rows)
    return np.asarray(starts[:-1] + within * np.diff(starts), dtype=np.int64)


def as_numbers(name: str, values: Array) -> Floats:
    """Read a column as numbers; None and text that is empty are NaN.

    Raises:
        DataError: The column holds text, or more than one value per row.
    """
    if values.ndim != 1:
        raise DataError(
            f"column `{name}` has shape {list(values.shape)}, expected one value per row",
            hint="give one column per profiled value",
        )
    if values.dtype.kind in "biuf":
        return values.astype(np.float64, copy=False)
    if values.dtype.kind == "M":
        seconds = values.astype("datetime64[us]").astype(np.float64) / 1e6
        return np.where(np.isnat(values), np.nan, seconds)
    numbers = np.empty(len(values))
    for place, value in enumerate(values.tolist()):
        if value is None or value == "":
            numbers[place] = np.nan
        elif isinstance(value, int | float):
            numbers[place] = value
        else:
            raise DataError(
                f"column `{name}` holds {value!r} in row {place}, but the reference is numeric",
                hint="send numbers as in the rows that the bundle was packed with",
            )
    return numbers


def count_numeric(reference: NumericReference, window: Mapping[str, Array]) -> NumericCounts:
    """Count every numeric column of a window on the reference's edges.

    Args:
        reference: The numeric columns.
        window: Column → array of shape (n_rows,); all columns of the reference are there.

    Raises:
        DataError: A column holds text.
    """
    below = np.zeros(reference.below.shape, dtype=np.int64)
    size = len(reference.columns)
    present, under, over = (np.zeros(size, dtype=np.int64) for _ in range(3))
    beyond, mean = np.zeros(size), np.full(size, np.nan)
    n_rows = 0
    for index, column in enumerate(reference.columns):
        values = as_numbers(column.name, window[column.name])
        n_rows = len(values)
        is_finite = np.isfinite(values)
        found = int(np.count_nonzero(is_finite))
        if found < n_rows:
            values = values[is_finite]
        present[index] = found
        below[index] = found
        if found == 0:
            continue
        mean[index] = values.sum() / found
        size = len(column.edges)
        below[index, :size] = _below(values, reference.edges[index, :size])
        if column.minimum is not None and column.maximum is not None:
            under[index] = np.count_nonzero(values < column.minimum)
            over[index] = np.count_nonzero(values > column.maximum)
            if under[index] + over[index]:
                inside = np.clip(values, column.minimum, column.maximum)
                beyond[index] = np.abs(values - inside).sum() / found
    return NumericCounts(below, present, n_rows, under, over, beyond, mean)


def _below(values: Floats, edges: Floats) -> Ints:
    """Count the values under each edge; comparing beats sorting once there are many values."""
    if len(values) <= _FEW_VALUES:
        return np.searchsorted(np.sort(values), edges, side="left")
    return np.array([np.count_nonzero(values < edge) for edge in edges.tolist()], dtype=np.int64)


def count_categorical(column: ColumnProfile, values: Array) -> CategoryCounts:
    """Count a categorical column of a window in the categories of its profile."""
    raw = Counter(values.tolist())
    keys = category_keys(np.array([*raw, None], dtype=object))[:-1]
    seen: Counter[str] = Counter()
    missing = 0
    for key, count in zip(keys.tolist(), raw.values(), strict=True):
        if key is None:
            missing += count
        else:
            seen[key] += count
    listed = np.array([seen.pop(name, 0) for name in column.categories], dtype=np.int64)
    examples = tuple(name for name, _ in seen.most_common(5))
    return CategoryCounts(listed, sum(seen.values()), missing, examples)
