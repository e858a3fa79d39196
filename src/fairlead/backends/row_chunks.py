"""Rows of files as chunks of equal size: what can be read, where it was, and what cannot be read.

The same files give the same chunks every time, so that a chunk has a number that outlives the
process.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fairlead.core.dataset import Array
from fairlead.core.errors import DataError, NotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BadRow", "RowChunk", "Wanted", "count_rows", "find_files", "read_chunks"]

_SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson")
_KNOWN = ".parquet, .csv, .tsv, .jsonl or .ndjson"
_CSV_BLOCK_BYTES = 1 << 19
"""The reader holds a score of blocks at once; smaller ones cost more time than they save."""
_SNIFFED_BYTES = 8 << 20
_CHUNK_BYTES = 4 << 20
"""A chunk of wide rows ends here, however few they are."""
_COUNT_BYTES = 4 << 20
_PAGES_BYTES = 8 << 20
"""What is read ahead of a Parquet file, all columns together."""
_LEAST_PAGE_BYTES, _MOST_PAGE_BYTES = 1 << 12, 1 << 20
_HEADER_ROWS = 2
"""Arrow counts the header as row 1; our rows begin at 0 after it."""


class BadRow(NamedTuple):
    """A row that cannot be predicted.

    Attributes:
        row: Its number in its file, from 0, the header not counted.
        reason: Why, one sentence.
        raw: What the file says, as text.
    """

    row: int
    reason: str
    raw: str


@dataclass(frozen=True)
class Wanted:
    """Which columns to read; none at all reads everything.

    Attributes:
        numbers: Columns that the model takes as numbers.
        texts: Columns that the model takes as text.
        keep: Further columns; those of a CSV file stay text, so that `007` stays `007`.
    """

    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every column by name, or none when everything is read."""
        if not (*self.numbers, *self.texts):
            return ()
        return tuple(dict.fromkeys((*self.numbers, *self.texts, *self.keep)))

    @property
    def plain(self) -> frozenset[str]:
        """Columns that stay text whatever they look like."""
        return frozenset({*self.texts, *self.keep} - set(self.numbers))


@dataclass(frozen=True)
class RowChunk:
    """Some rows of a file.

    Attributes:
        file: Where they come from.
        rows: Numbers of the rows of the table, shape (n_rows,), int64.
        table: The rows that could be read.
        bad: The rows between them that could not.
    """

    file: str
    rows: Array
    table: pa.Table
    bad: tuple[BadRow, ...] = field(default=())


class _Piece(NamedTuple):
    """What a reader of one format gives: a table of any size, and what is not in it."""

    rows: Array
    table: Any
    bad: list[BadRow]


def find_files(references: Sequence[str | Path]) -> list[Path]:
    """Return the files that paths, folders and patterns name, each once, in order.

    Raises:
        NotFoundError: A reference names no file of rows.
    """
    found: dict[Path, None] = {}
    for reference in references:
        path = Path(reference)
        if path.is_dir():
            inside = (item for item in path.rglob("*") if item.is_file())
            files = sorted(item for item in inside if item.suffix.lower() in _SUFFIXES)
        elif path.is_file():
            files = [path]
        else:
            matches = glob.glob(str(reference), recursive=True)  # noqa: PTH207 (may be absolute)
            files = [Path(item) for item in sorted(matches)]
            files = [item for item in files if item.is_file()]
        if not files:
            raise NotFoundError(f"there is no data at {reference}", hint=f"give a {_KNOWN} file")
        found.update(dict.fromkeys(files))
    return list(found)


def count_rows(files: Sequence[Path]) -> int | None:
    """Return how many rows files have: exact for Parquet, lines for text; None when unreadable."""
    total = 0
    for path in files:
        try:
            total += _count(path)
        except (OSError, ValueError):
            return None
    return total


def _count(path: Path) -> int:
    import pyarrow.parquet as pq

    if path.suffix.lower() in {".parquet", ".pq"}:
        return int(pq.read_metadata(path).num_rows)
    lines = 0
    last = b"\n"
    with path.open("rb") as file:
        while piece := file.read(_COUNT_BYTES):
            lines += piece.count(b"\n")
            last = piece[-1:]
    lines += last != b"\n"
    return max(0, lines - (path.suffix.lower() in {".csv", ".tsv"}))


def read_chunks(path: Path, wanted: Wanted, *, chunk_rows: int) -> Iterator[RowChunk]:
    """Read a file chunk by chunk; memory does not grow with the file.

    Yields:
        Chunks of `chunk_rows` rows, good and bad together; the last one may be smaller, and so
        are those of very wide rows.

    Raises:
        DataError: The file cannot be read, or lacks a column.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} has no known suffix: found {path.suffix or 'none'}",
            hint=f"give a {_KNOWN} file",
        )
    import pyarrow as pa

    try:
        yield from _equal_chunks(path, reader(path, wanted, chunk_rows), chunk_rows)
    except (pa.ArrowException, ValueError, OSError) as exc:
        if isinstance(exc, DataError):
            raise
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise DataError(
            f"{path} cannot be read: {reason}",
            hint="check that the content is what the suffix says, and write the file again",
        ) from exc


def _equal_chunks(path: Path, pieces: Iterator[_Piece], size: int) -> Iterator[RowChunk]:
    """Cut by row number, so that chunks do not depend on how much a reader gives at once."""
    held: list[_Piece] = []
    n_bytes = 0
    end = size
    for piece in pieces:
        held.append(piece)
        n_bytes += piece.table.nbytes
        while _last_row(held[-1]) >= end:
            now, later = _cut(held, end)
            yield _chunk(path, now)
            held = [later]
            n_bytes = later.table.nbytes
            end += size
        if n_bytes >= _CHUNK_BYTES:
            end = _last_row(held[-1]) + 1 + size
            yield _chunk(path, held)
            held = [_Piece(piece.rows[:0], piece.table.slice(0, 0), [])]
            n_bytes = 0
    if held and any(len(piece.rows) or piece.bad for piece in held):
        yield _chunk(path, held)


def _last_row(piece: _Piece) -> int:
    last = int(piece.rows[-1]) if len(piece.rows) else -1
    return max([last, *(bad.row for bad in piece.bad)])


def _cut(held: list[_Piece], end: int) -> tuple[list[_Piece], _Piece]:
    *before, last = held
    at = int(np.searchsorted(last.rows, end))
    early = [bad for bad in last.bad if bad.row < end]
    late = [bad for bad in last.bad if bad.row >= end]
    now = _Piece(last.rows[:at], last.table.slice(0, at), early)
    return [*before, now], _Piece(last.rows[at:], last.table.slice(at), late)


def _chunk(path: Path, held: Sequence[_Piece]) -> RowChunk:
    import pyarrow as pa

    table = pa.concat_tables([piece.table for piece in held], promote_options="permissive")
    rows = np.concatenate([piece.rows for piece in held]) if held else np.empty(0, np.int64)
    bad = sorted(bad for piece in held for bad in piece.bad)
    return RowChunk(str(path), rows, table, tuple(bad))


def _check_columns(path: Path, names: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
        raise DataError(
            f"{path} lacks the columns {missing[:12]}; it has {shown or 'none'}",
            hint="give the columns that the model was made with",
        )


def _parquet(path: Path, wanted: Wanted, chunk_rows: int) -> Iterator[_Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, buffer_size=_page_bytes(path, wanted)) as file:
        _check_columns(path, (*wanted.names, *wanted.keep), file.schema_arrow.names)
        at = 0
        columns = list(wanted.names) or None
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        widest = max((g.total_byte_size / max(1, g.num_rows) for g in groups), default=1.0)
        size = max(1, min(chunk_rows, int(_CHUNK_BYTES / max(1.0, widest))))
        for batch in file.iter_batches(batch_size=size, columns=columns):
            rows = np.arange(at, at + batch.num_rows)
            at += batch.num_rows
            yield _Piece(rows, pa.Table.from_batches([batch]), [])


def _page_bytes(path: Path, wanted: Wanted) -> int:
    """Return how much of each column is read ahead, so that all columns together stay small."""
    import pyarrow.parquet as pq

    n_columns = len(wanted.names) or len(pq.read_schema(path).names)
    return min(_MOST_PAGE_BYTES, max(_LEAST_PAGE_BYTES, _PAGES_BYTES // max(1, n_columns)))


def _csv(path: Path, wanted: Wanted, chunk_rows: int) -> Iterator[_Piece]:  # noqa: ARG001
    import pyarrow as pa
    from pyarrow import csv

    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", hint="give a file with a header and rows")
    header, longest = _sniffed(path)
    delimiter = max(",;\t|", key=lambda mark: header.count(mark.encode()))
    bad: list[BadRow] = []

    def skip(row: Any) -> str:  # noqa: ANN401 (pyarrow's InvalidRow)
        reason = (
            f"it cannot be read: {row.actual_columns} values for {row.expected_columns} columns"
        )
        bad.append(BadRow(int(row.number) - _HEADER_ROWS, reason, row.text))
        return "skip"

    # Rows are only numbered by a reader without threads of its own; chunks are scored in many.
    read = csv.ReadOptions(block_size=max(_CSV_BLOCK_BYTES, 4 * longest), use_threads=False)
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip)
    plain_parse = csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda _: "skip"
    )
    with csv.open_csv(path, read_options=read, parse_options=plain_parse) as first:
        found = list(first.schema.names)
    _check_columns(path, (*wanted.names, *wanted.keep), found)
    names = wanted.names or tuple(found)
    # Bytes first: one value that is no text, or no number, is the matter of its row alone.
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(found, pa.binary()),
        include_columns=list(names),
        strings_can_be_null=True,
    )
    reader = csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    at = 0
    for batch in reader:
        # The reader runs ahead; a row that it refused far behind this batch waits its turn.
        rows, at, now = _row_numbers(at, batch.num_rows, bad)
        table = pa.Table.from_batches([batch])
        yield _decoded(_Piece(rows, table, now), wanted)
    if bad:
        nothing = pa.table({name: pa.array([], pa.string()) for name in names})
        yield _Piece(np.empty(0, np.int64), nothing, bad)


def _sniffed(path: Path) -> tuple[bytes, int]:
    """Return the first line of a file, and the length of the longest one near its beginning."""
    with path.open("rb") as file:
        header = file.readline(_SNIFFED_BYTES)
        longest = read = len(header)
        while read < _SNIFFED_BYTES and (line := file.readline(_SNIFFED_BYTES)):
            longest = max(longest, len(line))
            read += len(line)
    return header.rstrip(b"\r\n"), longest


def _row_numbers(at: int, count: int, bad: list[BadRow]) -> tuple[Array, int, list[BadRow]]:
    """Number the good rows of a batch around the bad ones, which leave the list."""
    rows = np.empty(count, np.int64)
    filled = 0
    now: list[BadRow] = []
    while filled < count or (bad and bad[0].row == at):
        until = bad[0].row if bad else at + count - filled
        step = min(until - at, count - filled)
        rows[filled : filled + step] = np.arange(at, at + step)
        filled += step
        at += step
        if bad and bad[0].row == at:
            now.append(bad.pop(0))
            at += 1
    return rows, at, now


def _decoded(piece: _Piece, wanted: Wanted) -> _Piece:
    """Turn bytes into text, and text into numbers where every value of the batch is one."""
    import pyarrow as pa

    table, refused = piece.table, dict[int, str]()
    for place, name in enumerate(table.column_names):
        column = table[name]
        try:
            column = column.cast(pa.string())
        except pa.ArrowException:
            column, places = _text_or_none(column)
            refused |= dict.fromkeys(places, f"`{name}` is no UTF-8 text")
        if name not in wanted.plain:
            column = _typed(column)
        table = table.set_column(place, name, column)
    if not refused:
        return _Piece(piece.rows, table, piece.bad)
    good = np.ones(table.num_rows, dtype=bool)
    good[list(refused)] = False
    raw = piece.table.slice
    bad = [
        BadRow(int(piece.rows[at]), reason, repr(raw(at, 1).to_pylist()[0]))
        for at, reason in refused.items()
    ]
    return _Piece(piece.rows[good], table.filter(pa.array(good)), [*piece.bad, *bad])


def _text_or_none(column: Any) -> tuple[Any, list[int]]:  # noqa: ANN401 (an Arrow column)
    import pyarrow as pa

    texts: list[str | None] = []
    refused = []
    for at, value in enumerate(column.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            refused.append(at)
    return pa.chunked_array([pa.array(texts, pa.string())]), refused


def _typed(column: Any) -> Any:  # noqa: ANN401 (an Arrow column)
    import pyarrow as pa

    for kind in (pa.int64(), pa.float64(), pa.timestamp("us")):
        with suppress(pa.ArrowException):
            return column.cast(kind)
    return column


def _json_lines(path: Path, wanted: Wanted, chunk_rows: int) -> Iterator[_Piece]:
    number = 0
    is_checked = False
    with path.open("rb") as file:
        filled = (line for line in file if line.strip())
        while lines := _some(filled, chunk_rows):
            piece, found = _parsed(lines, number, wanted)
            if len(piece.rows) and not is_checked:
                # Later rows may leave values out; a file without the column is another matter.
                _check_columns(path, (*wanted.names, *wanted.keep), found)
                is_checked = True
            yield piece
            number += len(lines)


def _some(lines: Iterator[bytes], count: int) -> list[bytes]:
    """Take lines until they are many or long enough."""
    found: list[bytes] = []
    size = 0
    for line in islice(lines, count):
        found.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            break
    return found


def _parsed(lines: Sequence[bytes], number: int, wanted: Wanted) -> tuple[_Piece, list[str]]:
    import pyarrow as pa

    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for row, line in enumerate(lines, number):
        try:
            value = json.loads(line)
            reason = "" if isinstance(value, dict) else "it is no JSON object"
        except (ValueError, RecursionError) as exc:
            reason = f"it is not JSON: {exc}"
        if reason:
            bad.append(BadRow(row, reason, line.decode("utf-8", "replace").rstrip()))
        else:
            rows.append(row)
            objects.append(value)
    found = list(dict.fromkeys(key for item in objects for key in item))
    columns = {n: _column([item.get(n) for item in objects]) for n in wanted.names or found}
    return _Piece(np.array(rows, np.int64), pa.table(columns), bad), found


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
