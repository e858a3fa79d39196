"""Profiled columns: how tensors become columns, and what the columns looked like at the start.

The reference profile, the prediction log and the drift report all speak of the columns that
`flatten_inputs` and `flatten_outputs` give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.profile import ColumnProfile, ReferenceProfile
from fairlead.measure.quality import predicted

__all__ = [
    "build_profile",
    "category_keys",
    "count_bins",
    "count_categories",
    "flatten_inputs",
    "flatten_outputs",
    "winsorise",
]

_MAX_VALUES = 512
_MAX_CATEGORIES = 100
_MAX_CORRELATED = 256
_MAX_DISTINCT = 20
_PROBABILITIES = np.linspace(0.0, 1.0, 101)
_EDGE_RANKS = np.arange(5, 100, 5)


def flatten_inputs(manifest: BundleManifest, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Turn the input tensors of a batch into one array of shape (n_rows,) per profiled column.

    A stacked input becomes its feature columns, a column input keeps its name, and a tensor of
    higher rank becomes `name[i,j]`; one of more than 512 values per row that has no column names
    becomes `name.mean`, `name.std`, `name.min` and `name.max`.
    """
    columns: dict[str, Array] = {}
    is_single = len(manifest.signature.inputs) == 1
    for spec in manifest.signature.inputs:
        names = manifest.feature_columns if is_single else ()
        columns.update(_columns_of(spec.name, spec.numbers(feeds[spec.name]), names))
    return columns


def flatten_outputs(manifest: BundleManifest, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Turn the outputs of a batch into columns of shape (n_rows,).

    Classifiers give `prediction` (the class label) and `score[<class>]`, regressors
    `prediction` as float64; other models give each output like an input.
    """
    if manifest.task == "other":
        columns: dict[str, Array] = {}
        for name, given in outputs.items():
            array = manifest.signature.output_numbers(name, given)
            is_main = name == manifest.prediction_output and _values_per_row(array) == 1
            columns.update(_columns_of("prediction" if is_main else name, array, ()))
        return columns
    columns = {"prediction": predicted(manifest, outputs)}
    if manifest.score_output is None or manifest.score_output not in outputs:
        return columns
    name = manifest.score_output
    scores = manifest.signature.output_numbers(name, outputs[name])
    table = scores.reshape(len(scores), -1)
    names = manifest.classes
    if table.shape[1] == 1 and len(names) == 2:
        names = names[1:]
    if len(names) != table.shape[1]:
        names = tuple(range(table.shape[1]))
    for index, label in enumerate(names[:_MAX_VALUES]):
        columns[f"score[{label}]"] = table[:, index].astype(np.float64)
    return columns


def _values_per_row(array: Array) -> int:
    return int(np.prod(array.shape[1:]))


def _columns_of(name: str, array: Array, names: tuple[str, ...]) -> dict[str, Array]:
    size = _values_per_row(array)
    table = array.reshape(len(array), size)
    if len(names) == size and size > 0:
        return {column: table[:, index] for index, column in enumerate(names)}
    if size == 1:
        return {name: table[:, 0]}
    if size > _MAX_VALUES and array.dtype.kind != "O":
        return _summaries(name, table)
    shape = array.shape[1:]
    return {
        f"{name}[{','.join(str(part) for part in np.unravel_index(index, shape))}]": table[:, index]
        for index in range(min(size, _MAX_VALUES))
    }


def _summaries(name: str, table: Array) -> dict[str, Array]:
    numbers = table.astype(np.float64)
    return {
        f"{name}.mean": numbers.mean(axis=1),
        f"{name}.std": numbers.std(axis=1),
        f"{name}.min": numbers.min(axis=1),
        f"{name}.max": numbers.max(axis=1),
    }


def build_profile(
    inputs: Mapping[str, Array], outputs: Mapping[str, Array], data_digest: str
) -> ReferenceProfile:
    """Describe the distribution of every column over the reference rows.

    Text and integer outputs (class labels) are categorical, everything else is numeric; NaN,
    infinite values, None and empty text count as missing.

    Args:
        inputs: Column → array of shape (n_rows,), from `flatten_inputs`.
        outputs: Column → array of shape (n_rows,), from `flatten_outputs`.
        data_digest: Digest of the rows.
    """
    numeric: dict[tuple[str, str], Array] = {}
    profiles: dict[tuple[str, str], ColumnProfile] = {}
    for role, columns in (("input", inputs), ("output", outputs)):
        for name, array in columns.items():
            if array.dtype.kind in "OUS" or (role == "output" and array.dtype.kind in "biu"):
                profiles[role, name] = _categorical(name, role, array)
            else:
                numeric[role, name] = array
    if numeric:
        table = np.stack([array.astype(np.float64) for array in numeric.values()], axis=1)
        table[~np.isfinite(table)] = np.nan
        profiles.update(zip(numeric, _numeric(list(numeric), table), strict=True))
    keys = [("input", name) for name in inputs] + [("output", name) for name in outputs]
    correlated = [key for key in numeric if key[0] == "input"][:_MAX_CORRELATED]
    if correlated:
        table = winsorise(table[:, : len(correlated)], [profiles[key] for key in correlated])
    return ReferenceProfile(
        n_rows=max((len(array) for array in (*inputs.values(), *outputs.values())), default=0),
        columns=tuple(profiles[key] for key in keys),
        correlation=_correlation(table) if len(correlated) > 1 else (),
        correlated=tuple(name for _, name in correlated) if len(correlated) > 1 else (),
        data_digest=data_digest,
    )


def winsorise(table: NDArray[np.float64], columns: Sequence[ColumnProfile]) -> NDArray[np.float64]:
    """Pull values beyond the 2 % and 98 % quantiles of the reference back to them.

    A correlation of such columns does not hang on a few extreme rows, so it can be compared
    between windows.

    Args:
        table: Shape (n_rows, n_columns); NaN stays NaN.
        columns: The numeric profiles, one per column of `table`.
    """
    low = [c.quantiles[2] if c.quantiles else -np.inf for c in columns]
    high = [c.quantiles[98] if c.quantiles else np.inf for c in columns]
    return np.clip(table, np.array(low), np.array(high))


def count_bins(profile: ColumnProfile, values: Array) -> NDArray[np.int64]:
    """Count values in the bins of a numeric profile; bin i holds edges[i-1] <= value < edges[i].

    Args:
        profile: A numeric column.
        values: Shape (n_rows,); NaN and infinite values are left out.

    Returns:
        Shape (len(edges) + 1,), int64.
    """
    numbers = values.astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    places = np.searchsorted(np.asarray(profile.edges, np.float64), numbers, side="right")
    return np.bincount(places, minlength=len(profile.edges) + 1).astype(np.int64)


def count_categories(profile: ColumnProfile, values: Array) -> NDArray[np.int64]:
    """Count values in the categories of a categorical profile; missing values are left out.

    Returns:
        Shape (len(categories) + 1,), int64: one count per listed category in its order, then
        everything that is not listed.
    """
    keys = category_keys(values)
    present = [key for key in keys if key is not None]
    found, counts = np.unique(np.array(present, dtype=object), return_counts=True)
    seen = {str(key): int(count) for key, count in zip(found, counts, strict=True)}
    listed = [seen.pop(category, 0) for category in profile.categories]
    return np.array([*listed, sum(seen.values())], dtype=np.int64)


def category_keys(values: Array) -> Array:
    """Return the names of categories: text, or None for a missing value; 7 and 7.0 are `7`.

    Args:
        values: Shape (n_rows,) of text, integers, booleans or floats.

    Returns:
        Shape (n_rows,), dtype object.
    """
    keys: Array = np.empty(len(values), dtype=object)
    if values.dtype.kind in "iu":
        keys[:] = values.astype(str).tolist()
        return keys
    keys[:] = [_key(value) for value in values.tolist()]
    return keys


def _key(value: object) -> str | None:
    if value is None or value != value or value in ("", b""):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _categorical(name: str, role: str, array: Array) -> ColumnProfile:
    keys = category_keys(array)
    present = np.array([key for key in keys if key is not None], dtype=object)
    found, counts = np.unique(present, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = {str(found[index]): int(counts[index]) for index in order[:_MAX_CATEGORIES]}
    return ColumnProfile.model_validate(
        {
            "name": name,
            "kind": "categorical",
            "role": role,
            "n_rows": len(array),
            "missing_ratio": 1 - len(present) / len(array),
            "categories": listed,
            "other_count": len(present) - sum(listed.values()),
        }
    )


def _numeric(keys: list[tuple[str, str]], table: NDArray[np.float64]) -> list[ColumnProfile]:
    n_rows = len(table)
    ordered = np.sort(table, axis=0)  # NaN goes to the end
    present = n_rows - np.isnan(table).sum(axis=0)
    quantiles = _quantiles(ordered, present)
    profiles = []
    for index, (role, name) in enumerate(keys):
        values = ordered[: present[index], index]
        document: dict[str, object] = {
            "name": name,
            "kind": "numeric",
            "role": role,
            "n_rows": n_rows,
            "missing_ratio": 1 - float(present[index]) / n_rows,
        }
        if len(values):
            edges = _edges(values, quantiles[:, index])
            places = np.searchsorted(values, edges, side="left")
            document |= {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "minimum": float(values[0]),
                "maximum": float(values[-1]),
                "edges": tuple(edges.tolist()),
                "counts": tuple(np.diff(places, prepend=0, append=len(values)).tolist()),
                "quantiles": tuple(quantiles[:, index].tolist()),
            }
        profiles.append(ColumnProfile.model_validate(document))
    return profiles


def _quantiles(ordered: NDArray[np.float64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    """Interpolate linearly between order statistics, column by column at once."""
    last = np.maximum(present - 1, 0)
    position = _PROBABILITIES[:, None] * last[None, :]
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, last[None, :])
    columns = np.arange(ordered.shape[1])[None, :]
    below, above = ordered[low, columns], ordered[high, columns]
    return np.asarray(below + (above - below) * (position - low), dtype=np.float64)


def _edges(values: NDArray[np.float64], quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose bin edges: around every value of a discrete column, else every twentieth quantile."""
    distinct = values[np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)]
    if len(distinct) > _MAX_DISTINCT:
        chosen = quantiles[_EDGE_RANKS]
        # A value that many rows share gets a bin of its own, or its share would stay unseen.
        shared = chosen[1:][chosen[1:] == chosen[:-1]]
        return np.unique(np.concatenate([chosen, np.nextafter(shared, np.inf)]))
    middles = distinct[:-1] + np.diff(distinct) / 2
    # The outer bins stay empty in the reference: they catch values that were never seen.
    return np.unique(np.array([distinct[0], *middles, np.nextafter(distinct[-1], np.inf)]))


def _correlation(table: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    is_missing = np.isnan(table)
    counts = np.maximum((~is_missing).sum(axis=0), 1)
    means = np.where(is_missing, 0.0, table).sum(axis=0) / counts
    centred = np.where(is_missing, 0.0, table - means)
    scale = np.sqrt((centred**2).sum(axis=0))
    scale[scale == 0] = np.inf
    matrix = (centred / scale).T @ (centred / scale)
    np.fill_diagonal(matrix, 1.0)
    return tuple(tuple(row) for row in np.clip(matrix, -1.0, 1.0).round(6).tolist())
