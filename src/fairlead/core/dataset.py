"""Rows of data as named numpy columns, and how they become the tensors of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bfloat16 import BFLOAT16, bits_of
from fairlead.core.errors import DataError
from fairlead.core.signature import STRING, Signature, TensorSpec

__all__ = ["Dataset", "bind"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """Rows of data: columns of equal length, and the labels where they are known.

    Attributes:
        columns: Name → array of shape (n_rows,) or (n_rows, …); numbers, booleans, datetime64,
            or `object` arrays that hold `str` and None.
        labels: Shape (n_rows,), or None when nobody knows them.
        label_name: Name of the column the labels were read from.
        source: Where the rows come from, for people.
    """

    columns: Mapping[str, Array]
    labels: Array | None = None
    label_name: str | None = None
    source: str = "memory"

    def __post_init__(self) -> None:
        single = [name for name, array in self.columns.items() if np.ndim(array) == 0]
        if single:
            raise DataError(
                f"{single[0]} of {self.source} is one value, not one value per row",
                hint="give arrays whose first dimension is the rows",
            )
        lengths = {name: len(array) for name, array in self.columns.items()}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"columns of {self.source} have different lengths: {lengths}",
                hint="every column needs one value per row",
            )
        if not lengths or next(iter(lengths.values())) == 0:
            raise DataError(
                f"{self.source} holds no rows", hint="give a file with at least one row"
            )

    @property
    def n_rows(self) -> int:
        """Number of rows, at least 1."""
        first = next(iter(self.columns.values()), self.labels)
        return 0 if first is None else len(first)

    @cached_property
    def digest(self) -> str:
        """`sha256:…` over names, dtypes and values; equal data has an equal digest."""
        digest = hashlib.sha256()
        parts = dict(self.columns)
        if self.labels is not None:
            parts["\0labels"] = self.labels
        for name in sorted(parts):
            array = parts[name]
            digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(_bytes_of(array))
        return f"sha256:{digest.hexdigest()}"

    def take(self, rows: Array | slice) -> Dataset:
        """Return the chosen rows: a slice, indices, or a boolean mask of shape (n_rows,)."""
        return Dataset(
            {name: array[rows] for name, array in self.columns.items()},
            None if self.labels is None else self.labels[rows],
            self.label_name,
            self.source,
        )

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Cut the rows into two disjoint parts, at random but always the same way.

        Args:
            fraction: Share of the rows in the first part, between 0 and 1.
            seed: Seed of the shuffle.

        Raises:
            DataError: A part would be empty.
        """
        first = round(self.n_rows * fraction)
        if not 0 < first < self.n_rows:
            raise DataError(
                f"{self.n_rows} rows cannot be cut at {fraction:.0%} into two parts with rows",
                hint="give more rows",
            )
        order = np.random.default_rng(seed).permutation(self.n_rows)
        return self.take(np.sort(order[:first])), self.take(np.sort(order[first:]))

    def with_columns(self, columns: Mapping[str, Array]) -> Dataset:
        """Return the same rows and labels with some columns replaced or added."""
        return Dataset({**self.columns, **columns}, self.labels, self.label_name, self.source)


def _bytes_of(array: Array) -> bytes:
    if array.dtype.kind == "O":
        return "\0".join("\1" if value is None else str(value) for value in array.ravel()).encode()
    return np.ascontiguousarray(array).tobytes()


def bind(
    dataset: Dataset, signature: Signature, *, feature_columns: Sequence[str] = ()
) -> dict[str, Array]:
    """Turn the columns of a dataset into the input tensors of a model.

    Inputs named like a column take that column. A model with one numeric input that is named
    otherwise takes all its feature columns side by side.

    Args:
        dataset: The rows.
        signature: What the model takes.
        feature_columns: The columns of a single stacked input, in order; when empty, every
            numeric column in the order of the file.

    Returns:
        One array per input, first dimension the rows. Missing numbers are NaN, missing text "".

    Raises:
        DataError: A column is missing or cannot be read as what the input needs.
    """
    if all(spec.name in dataset.columns for spec in signature.inputs):
        return {spec.name: _as_tensor(dataset, (spec.name,), spec) for spec in signature.inputs}
    if len(signature.inputs) == 1:
        spec = signature.inputs[0]
        names = tuple(feature_columns) or _stackable(dataset, spec)
        return {spec.name: _as_tensor(dataset, names, spec)}
    missing = [spec.name for spec in signature.inputs if spec.name not in dataset.columns]
    raise DataError(
        f"{dataset.source} lacks the columns {missing}; it has {_shown(dataset.columns)}",
        hint="name the columns like the inputs of the model",
    )


def _stackable(dataset: Dataset, spec: TensorSpec) -> tuple[str, ...]:
    if len(dataset.columns) == 1:
        return tuple(dataset.columns)
    kinds = "OUS" if spec.dtype == STRING else "biuf"
    return tuple(name for name, array in dataset.columns.items() if array.dtype.kind in kinds)


def _as_tensor(dataset: Dataset, names: tuple[str, ...], spec: TensorSpec) -> Array:
    missing = [name for name in names if name not in dataset.columns]
    if missing:
        raise DataError(
            f"{dataset.source} lacks the columns {missing}; it has {_shown(dataset.columns)}",
            hint="add the columns, or pack the model again with the data it is used on",
        )
    parts = [_cast(dataset.columns[name], name, spec, dataset.source) for name in names]
    tensor = parts[0] if len(parts) == 1 else _stack(parts, dataset.source)
    return _reshape(tensor, spec, len(names), dataset.source)


def _stack(parts: list[Array], source: str) -> Array:
    flat = [part.reshape(len(part), -1) for part in parts]
    if not flat:
        raise DataError(
            f"{source} has no numeric column for the model",
            hint="give a file that holds the features of the model as numbers",
        )
    return np.concatenate(flat, axis=1)


def _cast(array: Array, name: str, spec: TensorSpec, source: str) -> Array:
    if spec.dtype == STRING:
        filled = ["" if value is None else str(value) for value in array.ravel()]
        return np.array(filled, dtype=object).reshape(array.shape)
    if array.dtype.kind == "M":
        seconds = array.astype("datetime64[us]").astype(np.float64) / 1e6
        array = np.where(np.isnat(array), np.nan, seconds)
        return bits_of(array) if spec.dtype == BFLOAT16 else array.astype(spec.numpy_dtype)
    if array.dtype.kind not in "biufO":
        _refuse_text(array, name, spec, source)
    try:
        if array.dtype.kind == "O":
            array = np.array([np.nan if v is None else float(v) for v in array], np.float64)
        if spec.dtype == BFLOAT16:
            return bits_of(array)
        with np.errstate(invalid="raise", over="ignore"):
            return array.astype(spec.numpy_dtype)
    except (TypeError, ValueError):
        _refuse_text(array, name, spec, source)
    except FloatingPointError as exc:
        raise DataError(
            f"column `{name}` of {source} has missing values, but the model takes {spec.dtype}",
            hint="fill the missing values, or use a model that takes floats",
        ) from exc


def _refuse_text(array: Array, name: str, spec: TensorSpec, source: str) -> NoReturn:
    example = next((value for value in array.ravel() if value is not None), None)
    raise DataError(
        f"column `{name}` of {source} holds {example!r}, but the model takes {spec.dtype}",
        hint="encode the column as numbers, or pack the pipeline that encodes it with the model",
    ) from None


def _reshape(tensor: Array, spec: TensorSpec, n_columns: int, source: str) -> Array:
    rows = tensor.shape[0]
    rest = spec.shape[1:]
    if tensor.ndim == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(rest, tensor.shape[1:], strict=True)
    ):
        return tensor
    wanted = int(np.prod(rest)) if -1 not in rest else -1
    found = int(np.prod(tensor.shape[1:]))
    if wanted == found or (wanted == -1 and rest.count(-1) == 1 and found > 0):
        fixed = int(np.prod([size for size in rest if size != -1])) or 1
        if found % fixed == 0:
            return tensor.reshape(rows, *rest)
    raise DataError(
        f"{source} gives {found} values per row from {n_columns} column(s), "
        f"but the model takes {spec}",
        hint="name the label column with --labels, and give exactly the model's features",
    )


def _shown(columns: Mapping[str, Array]) -> str:
    names = list(columns)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
