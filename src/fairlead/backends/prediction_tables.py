"""Spools of the prediction log as Arrow tables, in the columns of the reference profile."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.backends.prediction_encoding import FEED, HEAD, LOOSE
from fairlead.backends.prediction_encoding import OUTPUT as ANSWER
from fairlead.backends.prediction_frames import decode_frames
from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.errors import FairleadError
from fairlead.measure.profile import flatten_inputs, flatten_outputs

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FIELDS", "INPUT", "OUTPUT", "joined", "spool_table"]

FIELDS = (
    "service", "model", "version", "bundle_digest", "arm", "status", "queue_ms", "run_ms",
    "total_ms", "batch_rows", "trace_id", "error",
)  # fmt: skip
INPUT, OUTPUT = "input.", "output."
_log = logging.getLogger(__name__)
_PER_REQUEST = (
    "n_rows", "at", "version", "arm", "status", "queue_ms", "run_ms", "total_ms", "batch_rows",
    "trace_id", "error",
)  # fmt: skip


def spool_table(path: Path) -> pa.Table | None:
    """Return the rows of a spool in the order in which they were written, or None without any.

    The end of a spool whose writer was killed may be torn; what is before it is whole.

    Raises:
        FileNotFoundError: It is gone.
    """
    head: dict[str, Any] = {}
    loose: list[dict[str, Any]] = []
    layouts: dict[object, list[dict[str, Any]]] = {}
    for frame in decode_frames(path.read_bytes()):
        if frame is None:
            _log.warning("left out a part of %s that was torn or changed", path)
        elif frame.kind == HEAD:
            head = frame.blocks
        elif frame.kind == LOOSE:
            loose.append(json.loads(frame.blocks["fields"]))
        else:
            layouts.setdefault(_layout(frame.blocks), []).append(frame.blocks)
    tables = [_table_of_predictions(loose)] if loose else []
    if head.get("manifest"):
        manifest = BundleManifest.model_validate_json(head["manifest"])
        tables += [_table_of_requests(head, manifest, frames) for frames in layouts.values()]
    if not tables or not any(n.startswith(INPUT) for t in tables for n in t.column_names):
        if loose or layouts:
            _log.warning("left out %s, which is no segment with inputs", path)
        return None
    return joined(tables) if len(tables) > 1 else tables[0]


def _layout(blocks: Mapping[str, Any]) -> object:
    """Frames of equal layout can be put below one another."""
    return tuple(
        (name, block.dtype.kind == "O", block.shape[1:])
        for name, block in blocks.items()
        if ":" in name or name.startswith((INPUT, OUTPUT))
    )


def _table_of_requests(
    head: Mapping[str, Any], manifest: BundleManifest, frames: Sequence[Mapping[str, Any]]
) -> pa.Table:
    import pyarrow as pa

    merged = {name: _merged([(f[name], len(f["id"])) for f in frames]) for name in _PER_REQUEST}
    counts = merged.pop("n_rows")
    at = merged.pop("at").astype("datetime64[us]")
    ids = [request_id for frame in frames for request_id in frame["id"].tolist()]
    n_rows = int(counts.sum())
    columns: dict[str, Any] = {
        "id": pa.array(_row_ids(ids, counts.tolist()), pa.string()),
        "at": pa.array(np.repeat(at, counts)).cast(pa.timestamp("us", tz="UTC")),
    }
    shared = {"service": head["service"], "model": manifest.name,
              "bundle_digest": head["bundle_digest"]}  # fmt: skip
    for name in FIELDS:
        if name in shared:
            columns[name] = pa.repeat(pa.scalar(shared[name], pa.string()), n_rows)
        else:
            columns[name] = _field(np.repeat(merged[name], counts))
    columns.update(_tensor_columns(manifest, frames))
    return pa.table(columns)


def _merged(parts: Sequence[tuple[Any, int]]) -> Array:
    """Join the blocks of frames, each an array or one value for some requests."""
    arrays = []
    for block, count in parts:
        if isinstance(block, np.ndarray):
            arrays.append(block)
        else:
            kind = object if isinstance(block, str) else np.asarray(block).dtype
            arrays.append(np.full(count, block, dtype=kind))
    return np.concatenate(arrays)


def _field(array: Array) -> pa.Array:
    import pyarrow as pa

    if array.dtype.kind == "O":
        return pa.array(array.tolist(), pa.string())
    return pa.array(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))


def _row_ids(ids: Iterable[str], counts: Iterable[int]) -> list[str]:
    found: list[str] = []
    for request_id, count in zip(ids, counts, strict=True):
        if count == 1:
            found.append(request_id)
        else:
            found += [f"{request_id}#{row}" for row in range(count)]
    return found


def _tensor_columns(
    manifest: BundleManifest, frames: Sequence[Mapping[str, Any]]
) -> dict[str, pa.Array]:
    """Turn the tensors of frames of one layout into columns at once."""
    stacked = {
        name: np.concatenate([frame[name] for frame in frames])
        for name, block in frames[0].items()
        if isinstance(block, np.ndarray) and name not in {"id", *_PER_REQUEST}
    }
    feeds = _of_side(stacked, FEED)
    answers = _of_side(stacked, ANSWER)
    columns = _of_side(stacked, INPUT), _of_side(stacked, OUTPUT)
    try:
        inputs = flatten_inputs(manifest, feeds) if feeds else columns[0]
        outputs = flatten_outputs(manifest, answers) if answers else columns[1]
    except (FairleadError, ValueError, TypeError, KeyError, IndexError) as exc:
        _log.warning("tensors of %s have no columns: %s", manifest.name, exc)
        return {}
    found = {INPUT + name: _input_column(array) for name, array in inputs.items()}
    return found | {OUTPUT + name: _output_column(array) for name, array in outputs.items()}


def _of_side(blocks: Mapping[str, Array], side: str) -> dict[str, Array]:
    return {n.removeprefix(side): array for n, array in blocks.items() if n.startswith(side)}


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


def _table_of_predictions(predictions: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    at = [datetime.fromisoformat(item["at"]) for item in predictions]
    columns: dict[str, Any] = {
        "id": pa.array([item["id"] for item in predictions], pa.string()),
        "at": pa.array(at, pa.timestamp("us", tz="UTC")),
    }
    for name in FIELDS:
        columns[name] = pa.array([item[name] for item in predictions])
    for prefix, rows in (
        (INPUT, [item["inputs"] for item in predictions]),
        (OUTPUT, [item["outputs"] for item in predictions]),
    ):
        for name in dict.fromkeys(key for row in rows for key in row):
            values = [row.get(name) for row in rows]
            columns[prefix + name] = _loose_column(values, is_input=prefix == INPUT)
    return pa.table(columns)


def _loose_column(values: list[Any], *, is_input: bool) -> pa.Array:
    import pyarrow as pa

    known = [value for value in values if value is not None]
    if not all(isinstance(value, (int, float)) for value in known):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    is_whole = len(known) == len(values) and all(isinstance(v, int) for v in known)
    return pa.array(values, pa.int64() if is_whole and not is_input else pa.float64())


def joined(tables: Sequence[pa.Table]) -> pa.Table:
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
