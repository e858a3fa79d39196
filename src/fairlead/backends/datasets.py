"""Rows of data from files, from scikit-learn's own data sets, or from the user's function."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from fairlead.backends.arrow import array_from_arrow, arrow_from_array
from fairlead.backends.imports import load_attribute
from fairlead.core.dataset import Array, Dataset
from fairlead.core.errors import DataError, NotFoundError
from fairlead.core.extras import requires
from fairlead.core.files import user_path, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

__all__ = ["load_dataset", "save_dataset"]

_BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "wine")
_HINT = (
    "give a .parquet, .csv, .tsv, .jsonl, .ndjson or .npz file, "
    f"sklearn:{'|'.join(_BUNDLED)}, or package.module:function"
)
_INDEX_COLUMN = re.compile(r"__index_level_\d+__")
_SHOWN_ROWS = 5
_DEEPEST = 200
"""Levels of brackets in a line of JSON."""


def load_dataset(reference: str | os.PathLike[str], *, labels: str | None = None) -> Dataset:
    """Read rows of data.

    Text becomes `object` arrays with None where a value is missing, dates and timestamps become
    datetime64[us] in UTC, integers and booleans with missing values become floats with NaN, and
    lists of one length become arrays of shape (n_rows, length).

    Args:
        reference: A Parquet, CSV, JSON-lines or .npz file, `sklearn:NAME`, or
            `package.module:function` that returns a Dataset, arrays by name, or (X, y).
        labels: Column that holds the labels; it is taken out of the columns.

    Raises:
        NotFoundError: There is no such file.
        DataError: The rows cannot be read, are empty, lack the label column, or have rows
            without a label.
        MissingExtraError: `sklearn:` was asked for without scikit-learn.
    """
    text = os.fspath(reference)
    path = user_path(text)
    if not text.strip():
        raise NotFoundError("the name of the data is empty", hint=_HINT)
    if path.suffix.lower() in _READERS and (path.exists() or not _is_import_string(text)):
        found = _read_file(path, text)
    elif text.startswith("sklearn:"):
        found = _read_bundled(text)
    elif not path.exists() and _is_import_string(text):
        found = _call(text, labels)
    elif path.exists():
        raise DataError(f"{text} has no known suffix: found {path.suffix or 'none'}", hint=_HINT)
    else:
        raise NotFoundError(f"there is no data at {text}", hint=_HINT)
    return _with_labels(found, labels)


def save_dataset(dataset: Dataset, path: str | os.PathLike[str]) -> Path:
    """Write rows as one Parquet file, whole or not at all.

    The labels become a column named `label_name`, or `label` when it has none.

    Raises:
        WorkspaceError: The file cannot be written.
        DataError: A column with the name of the labels exists already.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Array] = dict(dataset.columns)
    if dataset.labels is not None:
        name = dataset.label_name or "label"
        if name in columns:
            raise DataError(
                f"the labels of {dataset.source} have the name of the column `{name}`",
                hint="rename the column",
            )
        columns[name] = dataset.labels
    table = pa.table({name: arrow_from_array(array) for name, array in columns.items()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    target = user_path(path)
    write_bytes(target, buffer.getvalue().to_pybytes())
    return target


def _is_import_string(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) is not None


# Files


def _read_file(path: Path, reference: str) -> Dataset:
    if not path.exists():
        raise NotFoundError(f"there is no data at {reference}", hint=_HINT)
    if not path.is_file():
        raise DataError(f"{reference} is not a file", hint=_HINT)
    if path.stat().st_size == 0:
        raise DataError(f"{reference} is empty", hint="give a file with at least one row")
    with _translated(reference):
        columns = _READERS[path.suffix.lower()](path)
    if not columns:
        raise DataError(f"{reference} holds no columns", hint="give a file with a header and rows")
    return Dataset(columns, source=reference)


@contextmanager
def _translated(reference: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OSError, BadZipFile, EOFError) as exc:
        if isinstance(exc, DataError):
            raise
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise DataError(
            f"{reference} cannot be read: {reason}",
            hint="check that the content is what the suffix says, and write the file again",
        ) from exc


def _read_parquet(path: Path) -> dict[str, Array]:
    import pyarrow.parquet as pq

    return _columns(pq.ParquetFile(path).read(), path)


def _read_csv(path: Path) -> dict[str, Array]:
    from pyarrow import csv

    with path.open("rb") as file:
        header = file.readline(1 << 20)
    delimiter = max(",;\t|", key=lambda mark: header.count(mark.encode()))
    table = csv.read_csv(
        path,
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(strings_can_be_null=True),
    )
    return _columns(table, path)


def _read_json_lines(path: Path) -> dict[str, Array]:
    from pyarrow import json

    _refuse_deep_nesting(path)
    # The default block is 1 MiB, and a row that does not fit in a block cannot be read.
    options = json.ReadOptions(block_size=max(1 << 20, min(path.stat().st_size, 1 << 30)))
    return _columns(json.read_json(path, read_options=options), path)


def _refuse_deep_nesting(path: Path) -> None:
    """Keep from the parser what overflows its stack and kills the process."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.count(b"[") + line.count(b"{") <= _DEEPEST:
                continue
            codes = np.frombuffer(line, np.uint8)
            steps = np.isin(codes, (0x5B, 0x7B)).astype(np.int32)
            depth = np.cumsum(steps - np.isin(codes, (0x5D, 0x7D))).max()
            if depth > _DEEPEST:
                raise ValueError(f"line {number} is nested {depth} levels deep")


def _columns(table: pa.Table, path: Path) -> dict[str, Array]:
    import pyarrow as pa

    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    names = [name for name in table.column_names if not _INDEX_COLUMN.fullmatch(name)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has more than one column named {', '.join(map(repr, twice))}",
            hint="give every column a name of its own",
        )
    return {name: array_from_arrow(table.column(name)) for name in names}


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: _text_as_objects(archive[name]) for name in archive.files}


_READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".npz": _read_npz,
}


# scikit-learn's own data sets, and functions


def _read_bundled(reference: str) -> Dataset:
    name = reference.removeprefix("sklearn:")
    if name not in _BUNDLED:
        raise DataError(
            f"scikit-learn has no bundled data set `{name}`", hint=f"choose {', '.join(_BUNDLED)}"
        )
    with requires("sklearn", needed_by=f"the data set {reference}"):
        datasets = importlib.import_module("sklearn.datasets")
    found = getattr(datasets, f"load_{name}")()
    names = [str(column) for column in found.feature_names]
    if name == "digits":
        names = [f"pixel_{index}" for index in range(found.data.shape[1])]
    columns = {column: found.data[:, index] for index, column in enumerate(names)}
    return Dataset(columns, found.target, "label", reference)


def _call(reference: str, labels: str | None) -> Dataset:
    function = load_attribute(reference)
    value = _result_of(function, reference) if callable(function) else function
    if isinstance(value, Dataset):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        target = None if value[1] is None else _text_as_objects(np.asarray(value[1]))
        return Dataset(_columns_of(value[0], reference), target, labels or "label", reference)
    return Dataset(_columns_of(value, reference), source=reference)


def _result_of(function: Callable[[], Any], reference: str) -> Any:  # noqa: ANN401 (user's value)
    try:
        return function()
    except (Exception, SystemExit) as exc:
        raise DataError(
            f"calling {reference} failed: {type(exc).__name__}: {exc}".splitlines()[0],
            hint="name a function that takes no arguments and returns the rows",
        ) from exc


def _columns_of(value: Any, reference: str) -> dict[str, Array]:  # noqa: ANN401 (user's value)
    if isinstance(value, Mapping):
        return {str(name): _text_as_objects(np.asarray(item)) for name, item in value.items()}
    if hasattr(value, "columns") and hasattr(value, "to_numpy"):
        import pyarrow as pa

        return _columns(pa.Table.from_pandas(value, preserve_index=False), Path(reference))
    if isinstance(value, np.ndarray) and value.ndim == 2:
        array = _text_as_objects(value)
        return {f"feature_{index}": array[:, index] for index in range(array.shape[1])}
    if isinstance(value, np.ndarray) and value.ndim > 2:
        return {"input": value}
    raise DataError(
        f"{reference} returned {type(value).__name__}",
        hint="return a Dataset, arrays by name, a DataFrame, or (X, y)",
    )


def _text_as_objects(array: Array) -> Array:
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    return array.astype(object) if array.dtype.kind == "U" else array


# Labels


def _with_labels(dataset: Dataset, name: str | None) -> Dataset:
    columns = dict(dataset.columns)
    labels, label_name = dataset.labels, dataset.label_name
    if name is not None and name in columns:
        labels, label_name = columns.pop(name), name
    elif name is not None and (labels is None or name != label_name):
        known = list(columns) + ([label_name] if label_name else [])
        shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        raise DataError(
            f"{dataset.source} has no column `{name}` for the labels",
            hint=f"its columns are {shown}",
        )
    if labels is not None:
        _check_labels(labels, label_name or "label", dataset.source)
    return Dataset(columns, labels, label_name if labels is not None else None, dataset.source)


def _check_labels(labels: Array, name: str, source: str) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "biufO":
        raise DataError(
            f"the labels `{name}` of {source} have dtype {labels.dtype} and shape "
            f"{list(labels.shape)}, expected one number or text per row",
            hint="name another column with --labels",
        )
    if labels.dtype.kind == "O":
        is_missing = np.array([value is None or value != value for value in labels], bool)
    else:
        is_missing = np.isnan(labels.astype(np.float64))
    rows = np.flatnonzero(is_missing)
    if len(rows):
        shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
        more = ", …" if len(rows) > _SHOWN_ROWS else ""
        raise DataError(
            f"the labels `{name}` of {source} are missing in {len(rows)} of {len(labels)} rows "
            f"(rows {shown}{more}, counted from 0)",
            hint="fill the labels, or leave these rows out",
        )
