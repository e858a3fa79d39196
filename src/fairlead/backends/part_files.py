"""Output that survives a killed process: numbered parts beside the target, joined at the end.

OUT.parquet.parts/job.json            what the parts belong to
OUT.parquet.parts/000000.parquet      good rows of chunk 0
OUT.parquet.parts/000000.bad.parquet  its bad rows, where there are any
OUT.parquet.parts/000000.json         chunk 0 is done, and how many rows it had
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fairlead.core.errors import ConflictError, UsageError
from fairlead.core.files import translated_os_errors, write_bytes, write_json
from fairlead.core.staging import staging_folder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PartCounts", "PartFiles", "quarantine_path"]

_JOB = "job.json"
_LOCK = ".lock"
_GOOD, _BAD = ".parquet", ".bad.parquet"


@dataclass(frozen=True, slots=True)
class PartCounts:
    """How many rows of a chunk were predicted, and how many could not be."""

    n_good: int
    n_bad: int


def quarantine_path(target: Path) -> Path:
    """Return where the bad rows of an output go: `out.parquet` → `out.quarantine.parquet`."""
    return target.with_name(f"{target.stem}.quarantine.parquet")


class PartFiles:
    """The parts of one output; written by several threads or processes, joined by one."""

    def __init__(self, target: Path) -> None:
        """Remember where the output shall stand.

        Raises:
            UsageError: Its suffix is that of no format that can be written.
        """
        self.target = target
        self.folder = target.with_name(f"{target.name}.parts")
        if target.suffix.lower() not in _WRITERS:
            raise UsageError(
                f"{target} has no known suffix: found {target.suffix or 'none'}",
                hint=f"write to a file that ends in {', '.join(_WRITERS)}",
            )

    @contextmanager
    def claimed(self, job: Mapping[str, Any]) -> Iterator[bool]:
        """Hold the parts while the block runs, and begin anew when they are of another job.

        Args:
            job: Everything that the parts depend on, as JSON.

        Yields:
            Whether parts of an earlier, killed run are there to go on from.

        Raises:
            ConflictError: Another process writes this output.
            WorkspaceError: The folder cannot be written.
        """
        with translated_os_errors(self.folder, "the predictions"):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise ConflictError(
                    f"another process is writing {self.target}",
                    hint="wait for it, or write to another file",
                ) from exc
            yield self._begin(json.loads(json.dumps(job)))
        finally:
            os.close(handle)

    def _begin(self, job: Mapping[str, Any]) -> bool:
        path = self.folder / _JOB
        with suppress(OSError, ValueError):
            if json.loads(path.read_text(encoding="utf-8")) == job:
                return any(self.done())
        for item in self.folder.iterdir():
            if item.name != _LOCK:
                item.unlink()
        write_json(path, job)
        return False

    def done(self) -> dict[int, PartCounts]:
        """Return the chunks that are done."""
        found = {}
        for path in self.folder.glob("[0-9]*.json"):
            found[int(path.stem)] = PartCounts(**json.loads(path.read_text(encoding="utf-8")))
        return found

    def write(self, number: int, good: pa.Table | None, bad: pa.Table | None) -> PartCounts:
        """Keep the rows of a chunk; once this returns it is done for good.

        Raises:
            WorkspaceError: It cannot be written or the disk is full.
        """
        for table, suffix in ((good, _GOOD), (bad, _BAD)):
            if table is not None and table.num_rows:
                write_bytes(self._path(number, suffix), _parquet_bytes(table))
        counts = PartCounts(
            0 if good is None else good.num_rows, 0 if bad is None else bad.num_rows
        )
        # Last, because it says that the others are there.
        write_json(self._path(number, ".json"), asdict(counts))
        return counts

    def join(self, count: int) -> None:
        """Write the output and the file of bad rows, whole or not at all, and remove the parts.

        Args:
            count: Number of chunks; each must be done.

        Raises:
            WorkspaceError: They cannot be written or the disk is full.
        """
        bad = [path for n in range(count) if (path := self._path(n, _BAD)).exists()]
        good = [path for n in range(count) if (path := self._path(n, _GOOD)).exists()]
        quarantine = quarantine_path(self.target)
        if bad:
            _join(bad, quarantine)
        else:
            with suppress(FileNotFoundError):
                quarantine.unlink()
        _join(good, self.target)
        self.remove()

    def remove(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:06d}{suffix}"


def _parquet_bytes(table: pa.Table) -> Any:  # noqa: ANN401 (a buffer)
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    return sink.getvalue()


def _join(parts: Sequence[Path], target: Path) -> None:
    import pyarrow.parquet as pq

    schema = _common_schema(parts)
    write = _WRITERS[target.suffix.lower()]
    with (
        translated_os_errors(target, "the predictions"),
        staging_folder(target.parent, target.name) as folder,
    ):
        temporary = folder / target.name
        with temporary.open("wb") as file:
            write(file, (_conformed(pq.read_table(p, partitioning=None), schema) for p in parts),
                  schema)  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


def _common_schema(parts: Sequence[Path]) -> pa.Schema:
    """Return columns that hold what every part holds: what is text in one is text in all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, Any] = {}
    for path in parts:
        for column in pq.read_schema(path):
            known = kinds.setdefault(column.name, column.type)
            if known != column.type:
                kinds[column.name] = _wider(known, column.type)
    empty = pa.null()
    return pa.schema([(n, pa.string() if kind == empty else kind) for n, kind in kinds.items()])


def _wider(one: Any, other: Any) -> Any:  # noqa: ANN401 (Arrow types)
    import pyarrow as pa

    try:
        fields = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return pa.string()


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = []
    for column in schema:
        if column.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, column.type))
            continue
        found = table[column.name]
        try:
            columns.append(found.cast(column.type))
        except pa.ArrowException:
            texts = [None if value is None else str(value) for value in found.to_pylist()]
            columns.append(pa.array(texts, pa.string()))
    return pa.table(columns, schema=schema)


def _write_parquet(file: IO[bytes], tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1) as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(file: IO[bytes], tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    from pyarrow import csv

    with csv.CSVWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_json_lines(file: IO[bytes], tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    del schema
    for table in tables:
        rows = table.to_pylist()
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        file.write("".join(f"{line}\n" for line in lines).encode())


_WRITERS = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
}
