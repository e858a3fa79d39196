"""Rows like the ones a bundle was made with, drawn from its reference profile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import FairleadError
from fairlead.core.profile import ColumnProfile
from fairlead.core.signature import STRING, Signature, TensorSpec

__all__ = ["example_feeds"]


def example_feeds(bundle: Bundle, signature: Signature, n_rows: int) -> dict[str, Array]:
    """Return `n_rows` plausible rows, always the same ones.

    A numeric column takes evenly spread quantiles of the reference rows and a categorical one
    its most frequent values in turn. What has no profile, such as a tensor of high rank, takes
    zeros or empty text.
    """
    try:
        profile = bundle.profile()
        columns = {
            column.name: _values(column, n_rows)
            for column in profile.columns
            if column.role == "input"
        }
        return bind(Dataset(columns), signature, feature_columns=bundle.manifest.feature_columns)
    except FairleadError:
        return {spec.name: _blank(spec, n_rows) for spec in signature.inputs}


def _values(column: ColumnProfile, n_rows: int) -> Array:
    if column.kind == "categorical":
        known = list(column.categories) or [""]
        values: NDArray[np.object_] = np.empty(n_rows, dtype=object)
        values[:] = [known[row % len(known)] for row in range(n_rows)]
        return values
    if not column.quantiles:
        return np.zeros(n_rows)
    places = np.linspace(25, 75, n_rows).astype(int) if n_rows > 1 else np.array([50])
    # Rows differ in every column, and not all columns rise together.
    quantiles = np.asarray(column.quantiles, np.float64)
    return np.roll(quantiles[places], len(column.name))


def _blank(spec: TensorSpec, n_rows: int) -> Array:
    shape = tuple(n_rows if i == 0 and size == -1 else max(size, 1) if size != -1 else 1
                  for i, size in enumerate(spec.shape))  # fmt: skip
    if spec.dtype == STRING:
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, spec.numpy_dtype)
