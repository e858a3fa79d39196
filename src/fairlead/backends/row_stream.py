"""Rows of a file as a stream of batches, and predictions as a growing Parquet file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fairlead.backends.arrow import array_from_arrow, arrow_from_array
from fairlead.core.dataset import Array, Dataset
from fairlead.core.errors import DataError, FairleadError, NotFoundError
from fairlead.core.files import translated_os_errors
from fairlead.core.staging import staging_folder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RowWriter", "count_rows", "parquet_writer", "stream_rows"]

_SUFFIXES = ".parquet, .csv, .tsv, .jsonl or .ndjson"
_CSV_BLOCK_BYTES = 4 << 20


def count_rows(path: Path) -> int | None:
    """Return the number of rows where the file tells without being read, else None."""
    if path.suffix.lower() not in {".parquet", ".pq"}:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def stream_rows(
    path: Path,
    *,
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
    keep: Sequence[str] = (),
    batch_rows: int = 4096,
) -> Iterator[Dataset]:
    """Read a file batch by batch; memory does not grow with the file.

    A batch of a text format does not know the batches to come, so a column that looks like whole
    numbers at first may hold fractions later: what the model needs is read by name and kind.

    Args:
        path: A Parquet, CSV or JSON-lines file.
        numbers: Columns that the model takes as numbers.
        texts: Columns that the model takes as text; with no numbers either, every column is read.
        keep: Further columns to read; those of a CSV file stay text, so that `007` stays `007`.
        batch_rows: Most rows of a batch.

    Yields:
        Batches of at least one row.

    Raises:
        NotFoundError: There is no such file.
        DataError: It cannot be read, holds no rows, or lacks a column.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no data at {path}", hint=f"give a {_SUFFIXES} file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} has no known suffix: found {path.suffix or 'none'}",
            hint=f"give a {_SUFFIXES} file",
        )
    is_everything = not (*numbers, *texts)
    names = () if is_everything else tuple(dict.fromkeys((*numbers, *texts, *keep)))
    plain = frozenset({*texts, *keep} - set(numbers))
    is_empty = True
    with _translated(path):
        for table in reader(path, names, plain, batch_rows):
            _check_columns(path, (*names, *keep), table.column_names)
            if table.num_rows:
                is_empty = False
                chosen = names or table.column_names
                columns = {name: array_from_arrow(table[name]) for name in chosen}
                yield Dataset(columns, source=str(path))
    if is_empty:
        raise DataError(f"{path} holds no rows", hint="give a file with at least one row")


def _check_columns(path: Path, names: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
        raise DataError(
            f"{path} lacks the columns {missing[:12]}; it has {shown or 'none'}",
            hint="give the columns that the model was made with",
        )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FairleadError:
        raise
    except (pa.ArrowException, ValueError, OSError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise DataError(
            f"{path} cannot be read: {reason}",
            hint="check that the content is what the suffix says, and write the file again",
        ) from exc


def _parquet(
    path: Path, names: Sequence[str], texts: frozenset[str], batch_rows: int
) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    del texts  # a Parquet file knows the kinds of its columns
    with pq.ParquetFile(path) as file:
        _check_columns(path, names, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=batch_rows, columns=list(names) or None):
            yield pa.Table.from_batches([batch])


def _csv(
    path: Path, names: Sequence[str], texts: frozenset[str], batch_rows: int
) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import csv

    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", hint="give a file with a header and rows")
    with path.open("rb") as file:
        header = file.readline(1 << 20)
    delimiter = max(",;\t|", key=lambda mark: header.count(mark.encode()))
    read = csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with csv.open_csv(path, read_options=read, parse_options=parse) as first:
        names = tuple(names) or tuple(first.schema.names)
    # Text first: what a column means is decided per batch, by `_typed`.
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
    )
    reader = csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    for batch in reader:
        table = pa.Table.from_batches([batch])
        _check_columns(path, names, table.column_names)
        for start in range(0, table.num_rows, batch_rows):
            yield _typed(table.slice(start, batch_rows).select(list(names)), texts)


def _typed(table: pa.Table, texts: frozenset[str]) -> pa.Table:
    """Read text columns as numbers or times where every value of the batch is one."""
    import pyarrow as pa

    for place, name in enumerate(table.column_names):
        if name in texts:
            continue
        for kind in (pa.int64(), pa.float64(), pa.timestamp("us")):
            with suppress(pa.ArrowException):
                table = table.set_column(place, name, table[name].cast(kind))
                break
    return table


def _json_lines(
    path: Path, names: Sequence[str], texts: frozenset[str], batch_rows: int
) -> Iterator[pa.Table]:
    import pyarrow as pa

    del texts
    with path.open("rb") as file:
        number = 0
        while lines := list(islice(file, batch_rows)):
            rows = [_object(path, line, number + i) for i, line in enumerate(lines, 1)]
            number += len(lines)
            kept = [row for row in rows if row is not None]
            if kept:
                found = dict.fromkeys(key for row in kept for key in row)
                _check_columns(path, names, list(found))
                chosen = names or list(found)
                yield pa.table({name: _column([r.get(name) for r in kept]) for name in chosen})


def _object(path: Path, line: bytes, number: int) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise DataError(
            f"line {number} of {path} is not JSON: {exc}", hint="write one JSON object per line"
        ) from exc
    if not isinstance(row, dict):
        raise DataError(
            f"line {number} of {path} is no JSON object", hint="write one JSON object per line"
        )
    return row


def _column(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


_READERS = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}


class RowWriter:
    """Appends batches of columns to a Parquet file; the first batch decides the kinds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writer: Any = None
        self.n_rows = 0

    def write(self, columns: Mapping[str, Array]) -> None:
        """Append one batch.

        Raises:
            DataError: A column is of another kind than in the batches before.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: arrow_from_array(array) for name, array in columns.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, _widened(table.schema), compression="zstd")
        try:
            table = table.cast(self._writer.schema)
        except (pa.ArrowException, ValueError) as exc:
            raise DataError(
                f"a column changes its kind in the middle of the file: {exc}",
                hint="give the file as Parquet, which fixes the kind of every column",
            ) from exc
        self._writer.write_table(table)
        self.n_rows += table.num_rows

    def close(self) -> None:
        """Write the footer."""
        if self._writer is not None:
            self._writer.close()


def _widened(schema: pa.Schema) -> pa.Schema:
    """Let a column that was empty so far hold text later."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in schema
    ]
    return pa.schema(fields)


@contextmanager
def parquet_writer(target: Path) -> Iterator[RowWriter]:
    """Write a Parquet file that appears whole when the block ends well, or not at all.

    Raises:
        WorkspaceError: It cannot be written or the disk is full.
    """
    with translated_os_errors(target, "the predictions"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(target.parent, target.name) as folder:
            temporary = folder / target.name
            with temporary.open("wb") as file:
                writer = RowWriter(file)
                yield writer
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
