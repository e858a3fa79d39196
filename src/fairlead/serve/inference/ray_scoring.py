"""Scoring on Ray Data: Ray reads, spreads and repeats; order and counting stay here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.backends.row_chunks import RowChunk
from fairlead.core.errors import DataError
from fairlead.core.extras import requires
from fairlead.serve.inference.chunk_scoring import ChunkScorer, ScoringOrder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["score_with_ray"]

_ROW, _REASON, _RAW, _PATH = "__row", "__reason", "__raw", "path"


class _Actor:
    """One copy of the model in the cluster."""

    def __init__(self, order: ScoringOrder) -> None:
        self._scorer = ChunkScorer(order)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score a batch; one row goes out per row that came in, in the same order."""
        import pyarrow as pa

        paths = table[_PATH]
        count = table.num_rows
        chunk = RowChunk("", np.arange(count), table.drop_columns([_PATH]))
        good, bad = self._scorer.score(chunk)
        rows = np.arange(count) if bad is None else bad["row"].to_numpy()
        places = np.arange(count) if bad is None else np.setdiff1d(np.arange(count), rows)
        parts = []
        if good is not None:
            parts.append(good.append_column(_ROW, pa.array(places)))
        if bad is not None:
            renamed = {"row": _ROW, "reason": _REASON, "raw": _RAW}
            parts.append(bad.drop_columns(["file"]).rename_columns(renamed))
        whole = pa.concat_tables(parts, promote_options="permissive").sort_by(_ROW)
        for name in (_REASON, _RAW):
            if name not in whole.column_names:
                whole = whole.append_column(name, pa.nulls(count, pa.string()))
        return whole.append_column(_PATH, paths)


def score_with_ray(
    order: ScoringOrder,
    files: Sequence[Path],
    names: Sequence[str],
    *,
    chunk_rows: int,
    workers: int,
) -> Iterator[tuple[pa.Table | None, pa.Table | None]]:
    """Yield the good and the bad rows of files, in order.

    Files that Ray cannot read as a whole fail as a whole; rows that the model cannot take are
    set apart one by one.

    Args:
        order: What to do with every batch.
        files: Files of one format, which every node of the cluster can read.
        names: Columns to read; none reads all.
        chunk_rows: Rows of a batch.
        workers: Copies of the model.

    Raises:
        DataError: The files are of several formats, or cannot be read.
        MissingExtraError: Ray is not installed.
    """
    with requires("ray", needed_by="scoring on Ray"):
        import ray
        import ray.data

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    dataset = _read(ray.data, files, names)
    scored = dataset.map_batches(
        _Actor,
        fn_constructor_args=(order,),
        batch_size=chunk_rows,
        batch_format="pyarrow",
        num_cpus=order.threads,
        # From one upwards: on a small cluster, actors on every core would leave none to read with.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
    )
    seen: dict[str, int] = {}
    for table in scored.iter_batches(batch_size=chunk_rows, batch_format="pyarrow"):
        yield _divided(table, seen)


def _read(data: Any, files: Sequence[Path], names: Sequence[str]) -> Any:  # noqa: ANN401 (Ray)
    suffixes = {path.suffix.lower() for path in files}
    paths = [str(path.resolve()) for path in files]
    if suffixes <= {".parquet", ".pq"}:
        return data.read_parquet(paths, columns=list(names) or None, include_paths=True)
    if suffixes == {".csv"}:
        return data.read_csv(paths, include_paths=True)
    if suffixes <= {".jsonl", ".ndjson"}:
        return data.read_json(paths, include_paths=True, lines=True)
    raise DataError(
        f"Ray cannot read files of {', '.join(sorted(suffixes))} together",
        hint="give files of one format: Parquet, CSV or JSON lines",
    )


def _divided(table: pa.Table, seen: dict[str, int]) -> tuple[pa.Table | None, pa.Table | None]:
    """Part good rows from bad ones, and number the bad ones within their files."""
    import pyarrow as pa

    reasons = table[_REASON]
    is_bad = np.array(reasons.is_valid())
    if not is_bad.any():
        for path in table[_PATH].to_pylist():
            seen[path] = seen.get(path, 0) + 1
        return table.drop_columns([_ROW, _REASON, _RAW, _PATH]), None
    numbers = []
    for path in table[_PATH].to_pylist():
        numbers.append(seen.get(path, 0))
        seen[path] = numbers[-1] + 1
    chosen = table.filter(pa.array(is_bad))
    bad = pa.table(
        {
            "file": chosen[_PATH],
            "row": pa.array(np.array(numbers)[is_bad]),
            "reason": chosen[_REASON],
            "raw": chosen[_RAW],
        }
    )
    good = table.filter(pa.array(~is_bad)).drop_columns([_ROW, _REASON, _RAW, _PATH])
    return good if good.num_rows else None, bad
