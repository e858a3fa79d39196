"""A shift that a drill plants in rows, to see whether the alert finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import Bundle
from fairlead.core.ports import Array, first_dimension
from fairlead.measure.profile import flatten_inputs

__all__ = ["PlantedShift", "plant_shift"]

_MOST_SHIFTED = 5
_MOST_BY_VALUE = 512
_MOST_LISTED = 100


@dataclass(frozen=True)
class PlantedShift:
    """Input tensors with a shift that somebody put there.

    Attributes:
        feeds: Input tensors, first dimension the rows.
        columns: Profiled columns that were shifted; empty when no input varies.
    """

    feeds: dict[str, Array]
    columns: tuple[str, ...]


def plant_shift(bundle: Bundle, feeds: Mapping[str, Array], *, size: float) -> PlantedShift:
    """Shift the inputs that vary most, with values that the model can answer.

    Floats move by `size` standard deviations. Whole numbers move too, but stay within what was
    seen, because they may be indices. Text becomes a value that was seen, in every second row,
    and booleans become the rarer one: a pipeline may refuse a category that it does not know.

    Args:
        bundle: Names the profiled columns.
        feeds: Input tensors, first dimension the rows.
        size: Shift in standard deviations of the rows at hand.
    """
    shifted = {name: _shift_tensor(array, size) for name, array in feeds.items()}
    before = flatten_inputs(bundle.manifest, feeds)
    after = flatten_inputs(bundle.manifest, shifted)
    changed = tuple(name for name in before if not _is_equal(before[name], after[name]))
    return PlantedShift(shifted, changed)


def _shift_tensor(array: Array, size: float) -> Array:
    table = array.reshape(first_dimension([array]), -1)
    if array.dtype.kind in "OUS":
        return _shift_text(table).reshape(array.shape)
    if array.dtype.kind == "b":
        return np.broadcast_to(table.mean(axis=0) <= 0.5, table.shape).reshape(array.shape).copy()
    return _shift_numbers(table, size).astype(array.dtype).reshape(array.shape)


def _shift_text(table: Array) -> Array:
    copy = table.copy()
    for column in copy.T:
        values, counts = np.unique(column.astype(str), return_counts=True)
        # The rarest value that a profile still lists moves the shares most.
        listed = np.argsort(-counts, kind="stable")[:_MOST_LISTED]
        column[::2] = str(values[listed[-1]])
    return copy


def _shift_numbers(table: Array, size: float) -> NDArray[np.float64]:
    numbers = table.astype(np.float64)
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    is_seen = np.isfinite(numbers).any(axis=0)
    spread = np.zeros(numbers.shape[1])
    spread[is_seen] = np.nanstd(finite[:, is_seen], axis=0)
    # A tensor without column names is watched by its mean and spread: five values would not show.
    if len(spread) <= _MOST_BY_VALUE:
        spread[np.argsort(-spread, kind="stable")[_MOST_SHIFTED:]] = 0.0
    if table.dtype.kind == "f":
        return numbers + spread * size
    moved: NDArray[np.float64] = np.minimum(numbers + np.ceil(spread * size), numbers.max(axis=0))
    return moved


def _is_equal(one: Array, other: Array) -> bool:
    if one.dtype.kind == "f":
        return bool(np.array_equal(one, other, equal_nan=True))
    return bool(np.array_equal(one, other))
