"""The Parquet segments of the prediction log: from arrays to columns, to files and back.

A segment has the fields of `Prediction` as columns, its inputs as `input.<column>` (float64 or
text) and its outputs as `output.<column>`, named like the columns of the reference profile.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.arrow import array_from_arrow
from fairlead.backends.logged_request import LoggedRequest
from fairlead.backends.services import check_service_name
from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array, Dataset
from fairlead.core.errors import FairleadError
from fairlead.core.files import translated_os_errors, write_bytes
from fairlead.core.prediction import Prediction, PredictionBatch
from fairlead.measure.profile import flatten_inputs, flatten_outputs

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Window", "prepare_folder", "read_segments", "write_segments"]

_log = logging.getLogger(__name__)
_NAME_FORMAT = "%Y%m%dT%H%M%S%f"
_FIELDS = (
    "service", "model", "version", "bundle_digest", "arm", "status", "queue_ms", "run_ms",
    "total_ms", "batch_rows", "trace_id", "error",
)  # fmt: skip
_INPUT, _OUTPUT = "input.", "output."
_counter = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Window:
    """Which predictions to read; see `ParquetPredictionLog.read`."""

    since: datetime | None = None
    until: datetime | None = None
    version: str | None = None
    limit: int | None = None


def prepare_folder(folder: Path, service: str) -> None:
    """Create the folder of a service and load the library that writes to it.

    Raises:
        WorkspaceError: It cannot be written.
    """
    import pyarrow.acero
    import pyarrow.parquet  # noqa: F401

    target = folder / check_service_name(service)
    with translated_os_errors(target, "the prediction log"):
        target.mkdir(parents=True, exist_ok=True)
        probe = target / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()


def write_segments(folder: Path, entries: Sequence[LoggedRequest | Prediction]) -> int:
    """Write one segment per service and version.

    Returns:
        How many rows were written.

    Raises:
        WorkspaceError: The folder cannot be written or the disk is full.
    """
    import pyarrow as pa

    written = 0
    groups: dict[tuple[str, str], list[LoggedRequest | Prediction]] = {}
    for entry in entries:
        groups.setdefault((entry.service, entry.bundle_digest), []).append(entry)
    tables = [(service, _table(group)) for (service, _), group in groups.items()]
    for service, table in tables:
        name = f"{datetime.now(UTC):{_NAME_FORMAT}}-{os.getpid()}-{next(_counter)}.parquet"
        sink = pa.BufferOutputStream()
        _write(table.sort_by("at"), sink)
        write_bytes(folder / check_service_name(service) / name, sink.getvalue().to_pybytes())
        written += table.num_rows
    return written


def _write(table: pa.Table, sink: pa.BufferOutputStream) -> None:
    import pyarrow.parquet as pq

    texts = [field.name for field in table.schema if str(field.type) == "string"]
    pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=texts)


def _table(entries: Sequence[LoggedRequest | Prediction]) -> pa.Table:
    loose = [entry for entry in entries if isinstance(entry, Prediction)]
    requests = [entry for entry in entries if isinstance(entry, LoggedRequest)]
    # All entries are of one version, so one manifest speaks for all.
    is_regular = bool(requests) and _is_regular(requests[0].manifest)
    groups: dict[object, list[LoggedRequest]] = {}
    for request in requests:
        groups.setdefault(_shape_key(request, is_regular=is_regular), []).append(request)
    tables = [_table_of_requests(group) for group in groups.values()]
    if loose:
        tables.append(_table_of_predictions(loose))
    return _joined(tables) if len(tables) > 1 else tables[0]


def _shape_key(request: LoggedRequest, *, is_regular: bool) -> object:
    """Requests of equal key can be put below one another."""
    outputs = request.outputs
    if is_regular:
        return outputs is None
    return (
        tuple(array.shape[1:] for array in request.feeds.values()),
        None if outputs is None else tuple(array.shape[1:] for array in outputs.values()),
    )


def _is_regular(manifest: BundleManifest) -> bool:
    """Say whether rows of all requests have one shape."""
    specs = (*manifest.signature.inputs, *manifest.signature.outputs)
    return all(-1 not in spec.shape[1:] for spec in specs)


def _table_of_requests(requests: Sequence[LoggedRequest]) -> pa.Table:
    import pyarrow as pa

    fields = dict(zip(LoggedRequest._fields, zip(*requests, strict=True), strict=True))
    fields["model"] = (requests[0].manifest.name,) * len(requests)
    counts = np.array(fields["n_rows"])
    at = (np.array(fields["at"]) * 1e6).astype("int64").astype("datetime64[us]")
    columns: dict[str, Any] = {
        "id": pa.array(_row_ids(requests), pa.string()),
        "at": pa.array(np.repeat(at, counts)).cast(pa.timestamp("us", tz="UTC")),
    }
    repeated = None if counts.max() == 1 else pa.array(np.repeat(np.arange(len(counts)), counts))
    for name in _FIELDS:
        column = pa.array(fields[name])
        columns[name] = column if repeated is None else column.take(repeated)
    columns.update(_flattened(requests))
    return pa.table(columns)


def _row_ids(requests: Iterable[LoggedRequest]) -> list[str]:
    ids: list[str] = []
    for request in requests:
        if request.n_rows == 1:
            ids.append(request.id)
        else:
            ids += [f"{request.id}#{row}" for row in range(request.n_rows)]
    return ids


def _flattened(requests: Sequence[LoggedRequest]) -> dict[str, pa.Array]:
    """Turn the tensors of all requests into columns at once; they have one shape and version."""
    first = requests[0]
    try:
        inputs = flatten_inputs(first.manifest, _stacked([r.feeds for r in requests]))
        columns = {_INPUT + name: _input_column(array) for name, array in inputs.items()}
        if first.outputs is not None:
            stacked = _stacked([r.outputs for r in requests if r.outputs is not None])
            outputs = flatten_outputs(first.manifest, stacked)
            columns |= {_OUTPUT + name: _output_column(array) for name, array in outputs.items()}
    except (FairleadError, ValueError, TypeError, KeyError, IndexError) as exc:
        # Its times and statuses are still worth remembering.
        _log.warning("tensors of %s have no columns: %s", first.service, exc)
        return {}
    return columns


def _stacked(parts: Sequence[Any]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _input_column(array: Array) -> pa.Array:
    import pyarrow as pa

    if array.dtype.kind in "OUS":
        return pa.array([None if v is None else str(v) for v in array.tolist()], pa.string())
    return pa.array(np.ascontiguousarray(array, np.float64))


def _output_column(array: Array) -> pa.Array:
    import pyarrow as pa

    if array.dtype.kind in "OUS":
        return _input_column(array)
    kind = np.float64 if array.dtype.kind == "f" else np.int64
    return pa.array(np.ascontiguousarray(array, kind))


def _table_of_predictions(predictions: Sequence[Prediction]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "id": pa.array([item.id for item in predictions], pa.string()),
        "at": pa.array([item.at for item in predictions], pa.timestamp("us", tz="UTC")),
    }
    for name in _FIELDS:
        columns[name] = pa.array([getattr(item, name) for item in predictions])
    for prefix, rows in (
        (_INPUT, [item.inputs for item in predictions]),
        (_OUTPUT, [item.outputs for item in predictions]),
    ):
        for name in dict.fromkeys(key for row in rows for key in row):
            values = [row.get(name) for row in rows]
            columns[prefix + name] = _loose_column(values, is_input=prefix == _INPUT)
    return pa.table(columns)


def _loose_column(values: list[Any], *, is_input: bool) -> pa.Array:
    import pyarrow as pa

    known = [value for value in values if value is not None]
    if not all(isinstance(value, (int, float, np.number, np.bool_)) for value in known):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    is_whole = len(known) == len(values) and all(isinstance(v, (int, np.integer)) for v in known)
    return pa.array(values, pa.int64() if is_whole and not is_input else pa.float64())


def read_segments(folder: Path, service: str, window: Window) -> PredictionBatch | None:
    """Read the predictions of a service; see `ParquetPredictionLog.read`."""
    tables: list[pa.Table] = []
    rows = 0
    paths = sorted((folder / check_service_name(service)).glob("*.parquet"), reverse=True)
    for path in paths:
        if _was_written_before(path, window.since):
            break
        table = _read_segment(path, window)
        if table is not None and table.num_rows:
            tables.append(table)
            rows += table.num_rows
        if window.limit is not None and rows >= window.limit:
            break
    if not rows or window.limit == 0:
        return None
    # The sort is stable, so rows of one request keep their order.
    whole = _joined(tables[::-1]).sort_by("at")
    return _batch(whole if window.limit is None else whole.slice(max(0, rows - window.limit)))


def _was_written_before(path: Path, since: datetime | None) -> bool:
    """Say whether a segment is older than a time; its name tells when it was written."""
    if since is None:
        return False
    try:
        written = datetime.strptime(path.name.split("-")[0], _NAME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return written < _utc(since)


def _read_segment(path: Path, window: Window) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as exc:
        _log.warning("left out %s, which cannot be read: %s", path, str(exc).splitlines()[0])
        return None
    missing = {"id", "at", *_FIELDS} - set(table.column_names)
    if missing or not any(name.startswith(_INPUT) for name in table.column_names):
        _log.warning("left out %s, which is no segment with inputs", path)
        return None
    if window.since is not None:
        table = table.filter(pc.field("at") >= pa.scalar(_utc(window.since)))
    if window.until is not None:
        table = table.filter(pc.field("at") < pa.scalar(_utc(window.until)))
    if window.version is not None:
        table = table.filter(pc.field("version") == window.version)
    return table


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Put tables below one another; a column that is text in one of them is text in all."""
    import pyarrow as pa

    kinds: dict[str, set[Any]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {n for n, found in kinds.items() if len(found) > 1 and pa.string() in found}
    return pa.concat_tables([_as_text(t, mixed) for t in tables], promote_options="permissive")


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    import pyarrow as pa

    for name in names & set(table.column_names):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(pa.string()))
    return table


def _batch(table: pa.Table) -> PredictionBatch:
    def column(name: str) -> NDArray[Any]:
        return array_from_arrow(table[name])

    names = table.column_names
    inputs = {n.removeprefix(_INPUT): column(n) for n in names if n.startswith(_INPUT)}
    return PredictionBatch(
        ids=column("id"),
        at=column("at").astype("datetime64[us]"),
        inputs=Dataset(inputs, source=f"predictions of {table['service'][0].as_py()}"),
        outputs={n.removeprefix(_OUTPUT): column(n) for n in names if n.startswith(_OUTPUT)},
        fields={name: column(name) for name in _FIELDS},
    )
