"""Columns cut into a few values that conditions can speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Array
from fairlead.core.profile import ColumnProfile, ReferenceProfile
from fairlead.measure.profile import category_keys
from fairlead.measure.slices import CodedFeature
from fairlead.measure.windows import as_numbers

__all__ = ["code_columns"]

_MOST_CATEGORIES = 12
_MISSING = "missing"
_OTHER = "other"


def code_columns(
    columns: Mapping[str, Array], profile: ReferenceProfile | None, *, bins: int
) -> list[CodedFeature]:
    """Cut columns into values; a column with a single value is left out.

    Args:
        columns: Column → array of shape (n_rows,).
        profile: Gives the quantiles at which numeric inputs are cut; a column it does not know
            is cut at its own quantiles.
        bins: Parts of a numeric column.
    """
    features = []
    for name, values in columns.items():
        if values.ndim != 1:
            continue
        known = None if profile is None else _input(profile, name)
        is_text = values.dtype.kind in "OUS" and (known is None or known.kind != "numeric")
        feature = (
            _code_text(name, category_keys(values))
            if is_text
            else _code_numbers(name, as_numbers(name, values), known, bins)
        )
        if len(feature.values) > 1:
            features.append(feature)
    return features


def _input(profile: ReferenceProfile, name: str) -> ColumnProfile | None:
    return next((c for c in profile.columns if c.role == "input" and c.name == name), None)


def _code_text(name: str, keys: Array) -> CodedFeature:
    found, counts = np.unique(
        np.array([_MISSING if key is None else f"={key}" for key in keys], dtype=str),
        return_counts=True,
    )
    order = found[np.argsort(-counts, kind="stable")][:_MOST_CATEGORIES].tolist()
    place_of = {key: place for place, key in enumerate(order)}
    codes = np.array(
        [place_of.get(_MISSING if key is None else f"={key}", len(order)) for key in keys],
        dtype=np.int32,
    )
    values = [key.removeprefix("=") for key in order]
    if len(found) > len(order):
        values.append(_OTHER)
    return CodedFeature(name, codes, tuple(values))


def _code_numbers(
    name: str, numbers: NDArray[np.float64], known: ColumnProfile | None, bins: int
) -> CodedFeature:
    is_there = np.isfinite(numbers)
    present = numbers[is_there]
    if not len(present):
        return CodedFeature(name, np.zeros(len(numbers), np.int32), (_MISSING,))
    distinct = np.unique(present)
    if len(distinct) <= bins:
        codes = np.searchsorted(distinct, numbers).astype(np.int32)
        values = [f"{value:g}" for value in distinct.tolist()]
    else:
        cuts = _cuts(present, distinct, known, bins)
        codes = np.searchsorted(cuts, numbers, side="right").astype(np.int32)
        values = _ranges(cuts.tolist())
    if not is_there.all():
        codes[~is_there] = len(values)
        values.append(_MISSING)
    return CodedFeature(name, codes, tuple(values))


def _cuts(
    present: NDArray[np.float64],
    distinct: NDArray[np.float64],
    known: ColumnProfile | None,
    bins: int,
) -> NDArray[np.float64]:
    """Return where to cut, at values that occur, so that people can read the parts."""
    shares = np.linspace(0, 1, bins + 1)[1:-1]
    if known is not None and len(known.quantiles) > 1:
        places = np.linspace(0, 1, len(known.quantiles))
        cuts = np.interp(shares, places, np.array(known.quantiles))
    else:
        cuts = np.quantile(present, shares)
    above = np.searchsorted(distinct, cuts - 1e-9 * float(np.ptp(distinct)))
    # A cut at the smallest value would leave an empty part below it.
    inner = np.unique(np.clip(above, 1, len(distinct) - 1))
    return np.asarray(distinct[inner], dtype=np.float64)


def _ranges(cuts: Sequence[float]) -> list[str]:
    words = [f"{cut:.4g}" for cut in cuts]
    middle = [f"{low} to {high}" for low, high in pairwise(words)]
    return [f"below {words[0]}", *middle, f"{words[-1]} or more"]
