"""The prediction log as tables: spools and Parquet segments, read as one.

A segment has the fields of `Prediction` as columns, its inputs as `input.<column>` (float64 or
text) and its outputs as `output.<column>`, named like the columns of the reference profile. It is
made of one spool and carries its name, so that nobody reads both.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fairlead.backends.arrow import array_from_arrow
from fairlead.backends.prediction_retention import FOREVER, Retention, expire, reading
from fairlead.backends.prediction_spool import STAMP_FORMAT, SUFFIX
from fairlead.backends.prediction_tables import FIELDS, INPUT, OUTPUT, joined, spool_table
from fairlead.backends.services import check_service_name
from fairlead.core.dataset import Dataset
from fairlead.core.files import write_bytes
from fairlead.core.prediction import PredictionBatch

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Window", "make_segments", "read_segments"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Window:
    """Which predictions to read; see `ParquetPredictionLog.read`."""

    since: datetime | None = None
    until: datetime | None = None
    version: str | None = None
    limit: int | None = None


def make_segments(folder: Path, service: str, keep: Retention = FOREVER) -> int:
    """Turn every spool that nobody writes to into a Parquet segment, and remove old segments.

    A process that is killed in between leaves the spool, or the segment and the spool of that
    name, of which the next call removes the one that is no longer needed.

    Returns:
        How many spools were turned.

    Raises:
        WorkspaceError: The folder cannot be written or the disk is full.
    """
    made = 0
    place = folder / check_service_name(service)
    for path in sorted(place.glob(f"*{SUFFIX}")):
        with _claimed(path) as is_mine:
            if not is_mine:
                continue
            if not any(place.glob(f"*-{path.stem}.parquet")):
                made += _make_segment(path)
            path.unlink()
    expire(place, keep)
    return made


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Lock a spool; False when somebody else works on it, or just removed it."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = os.fstat(handle).st_nlink > 0
        except BlockingIOError:
            is_mine = False
        yield is_mine
    finally:
        os.close(handle)


def _make_segment(path: Path) -> int:
    import pyarrow as pa

    table = spool_table(path)
    if table is None:
        return 0
    sink = pa.BufferOutputStream()
    _write(table.sort_by("at"), sink)
    # The time in front tells readers that every row is older.
    name = f"{datetime.now(UTC):{STAMP_FORMAT}}-{path.stem}.parquet"
    write_bytes(path.with_name(name), sink.getvalue())
    return 1


def _write(table: pa.Table, sink: pa.BufferOutputStream) -> None:
    import pyarrow.parquet as pq

    texts = [field.name for field in table.schema if str(field.type) == "string"]
    pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=texts)


def read_segments(folder: Path, service: str, window: Window) -> PredictionBatch | None:
    """Read the predictions of a service; see `ParquetPredictionLog.read`."""
    place = folder / check_service_name(service)
    while True:
        with suppress(FileNotFoundError), reading(place):
            tables = _read_tables(place, window)
            break
        # A spool became a segment between the look at the folder and the look into it.
    rows = sum(table.num_rows for table in tables)
    if not rows or window.limit == 0:
        return None
    # The sort is stable, so rows of one request keep their order.
    whole = joined(tables[::-1]).sort_by("at")
    return _batch(whole if window.limit is None else whole.slice(max(0, rows - window.limit)))


def _read_tables(place: Path, window: Window) -> list[pa.Table]:
    """Return tables from new to old, spools first: nothing that is still written is older.

    Raises:
        FileNotFoundError: A spool became a segment meanwhile.
    """
    # In this order: a spool that is gone has a segment that the second look finds.
    spools = sorted(place.glob(f"*{SUFFIX}"), reverse=True)
    segments = sorted(place.glob("*.parquet"), reverse=True)
    made = {path.stem.partition("-")[2] for path in segments}
    tables: list[pa.Table] = []
    for path in spools:
        if path.stem not in made:
            table = spool_table(path)
            if table is not None:
                tables.append(_within(table, window))
    rows = sum(table.num_rows for table in tables)
    for path in segments:
        is_enough = window.limit is not None and rows >= window.limit
        if is_enough or _was_written_before(path, window.since):
            break
        table = _read_segment(path, window)
        if table is not None:
            tables.append(table)
            rows += table.num_rows
    return tables


def _was_written_before(path: Path, since: datetime | None) -> bool:
    """Say whether a segment is older than a time; its name tells when it was written."""
    if since is None:
        return False
    try:
        written = datetime.strptime(path.name.split("-")[0], STAMP_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return written < _utc(since)


def _read_segment(path: Path, window: Window) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as exc:
        _log.warning("left out %s, which cannot be read: %s", path, str(exc).splitlines()[0])
        return None
    missing = {"id", "at", *FIELDS} - set(table.column_names)
    if missing or not any(name.startswith(INPUT) for name in table.column_names):
        _log.warning("left out %s, which is no segment with inputs", path)
        return None
    return _within(table, window)


def _within(table: pa.Table, window: Window) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    if window.since is not None:
        table = table.filter(pc.field("at") >= pa.scalar(_utc(window.since)))
    if window.until is not None:
        table = table.filter(pc.field("at") < pa.scalar(_utc(window.until)))
    if window.version is not None:
        table = table.filter(pc.field("version") == window.version)
    return table


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _batch(table: pa.Table) -> PredictionBatch:
    def column(name: str) -> NDArray[Any]:
        return array_from_arrow(table[name])

    names = table.column_names
    inputs = {n.removeprefix(INPUT): column(n) for n in names if n.startswith(INPUT)}
    return PredictionBatch(
        ids=column("id"),
        at=column("at").astype("datetime64[us]"),
        inputs=Dataset(inputs, source=f"predictions of {table['service'][0].as_py()}"),
        outputs={n.removeprefix(OUTPUT): column(n) for n in names if n.startswith(OUTPUT)},
        fields={name: column(name) for name in FIELDS},
    )
