"""One chunk of rows: what the model says of the good ones, and why the bad ones are bad."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.backends.row_chunks import BadRow, RowChunk, Wanted
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, ModelError, UsageError
from fairlead.core.signature import STRING
from fairlead.measure.profile import flatten_outputs
from fairlead.measure.quality import run_batches
from fairlead.serve.inference.arms import free_signature

if TYPE_CHECKING:
    import pyarrow as pa

    from fairlead.core.ports import Runner

__all__ = ["ChunkScorer", "ScoringOrder", "wanted_columns"]

_LONGEST_RAW = 4096


@dataclass(frozen=True)
class ScoringOrder:
    """What to do with every chunk; may travel to another process.

    Attributes:
        bundle: Folder of the model.
        keep: Columns of the input to carry over.
        columns: Columns of predictions to write; none writes all.
        threads: Threads of one run of the model.
        trust: Whether code that came with the model may run.
    """

    bundle: Path
    keep: tuple[str, ...]
    columns: tuple[str, ...]
    threads: int
    trust: bool


def wanted_columns(bundle: Bundle, keep: tuple[str, ...]) -> Wanted:
    """Return the columns that the model takes as numbers and as text; none when nobody knows."""
    manifest = bundle.manifest
    inputs = manifest.signature.inputs
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    if len(inputs) == 1 and manifest.feature_columns:
        columns = tuple(manifest.feature_columns)
        numbers, texts = ((), columns) if inputs[0].dtype == STRING else (columns, ())
    elif len(inputs) > 1:
        texts = tuple(spec.name for spec in inputs if spec.dtype == STRING)
        numbers = tuple(spec.name for spec in inputs if spec.dtype != STRING)
    return Wanted(numbers, texts, keep)


class ChunkScorer:
    """A loaded model that scores chunks; safe for several threads."""

    def __init__(self, order: ScoringOrder) -> None:
        """Load the model.

        Raises:
            ModelError: It cannot be loaded.
            UntrustedError: Loading would run code, and nobody said that it may.
        """
        from fairlead.backends.runners import open_runner

        self._order = order
        self._bundle = Bundle.open(order.bundle)
        runtime = self._bundle.runtime.model_copy(update={"intra_op_threads": order.threads})
        self._runner: Runner = open_runner(self._bundle, runtime=runtime, trust=order.trust)
        self._signature = free_signature(self._bundle.signature)
        self._wanted = wanted_columns(self._bundle, order.keep)

    def close(self) -> None:
        """Free the model."""
        self._runner.close()

    def score(self, chunk: RowChunk) -> tuple[pa.Table | None, pa.Table | None]:
        """Return the predictions of the good rows, and the bad rows with their reasons.

        Raises:
            UsageError: A column to keep has the name of a prediction, or one to write has not.
        """
        from fairlead.backends.arrow import array_from_arrow

        table = chunk.table
        names = self._wanted.names or table.column_names
        columns = {name: array_from_arrow(table[name]) for name in names}
        reasons: dict[int, str] = {}
        for name in self._wanted.numbers:
            columns[name], refused = _as_numbers(name, columns[name])
            reasons |= refused
        places = np.setdiff1d(np.arange(table.num_rows), np.array(sorted(reasons), np.int64))
        pieces: list[tuple[Array, dict[str, Array]]] = []
        if len(places):
            self._predict(columns, places, pieces, reasons)
        bad = [*chunk.bad, *(self._bad_row(chunk, at, why) for at, why in reasons.items())]
        return self._good_table(table, pieces), _bad_table(chunk.file, sorted(bad))

    def _predict(
        self,
        columns: Mapping[str, Array],
        places: Array,
        pieces: list[tuple[Array, dict[str, Array]]],
        reasons: dict[int, str],
    ) -> None:
        """Run the model on some rows; when it fails, halve them until the guilty one is alone."""
        is_whole = len(places) == len(next(iter(columns.values())))
        chosen = columns if is_whole else {name: a[places] for name, a in columns.items()}
        rows = Dataset(dict(chosen), source="the row")
        try:
            pieces.append((places, self._run(rows)))
        except (DataError, ModelError) as exc:
            if len(places) == 1:
                reasons[int(places[0])] = exc.message
                return
            middle = len(places) // 2
            self._predict(columns, places[:middle], pieces, reasons)
            self._predict(columns, places[middle:], pieces, reasons)

    def _run(self, rows: Dataset) -> dict[str, Array]:
        manifest = self._bundle.manifest
        features = self._features(rows)
        feeds = bind(features, self._signature, feature_columns=manifest.feature_columns)
        outputs = run_batches(self._runner, feeds, self._bundle.runtime.max_batch_size)
        found = flatten_outputs(manifest, outputs)
        return self._chosen(found)

    def _chosen(self, found: dict[str, Array]) -> dict[str, Array]:
        taken = sorted(set(self._order.keep) & set(found))
        if taken:
            raise UsageError(
                f"the column {taken[0]!r} would be both kept and predicted",
                hint="rename the column in the input",
            )
        unknown = [name for name in self._order.columns if name not in found]
        if unknown:
            raise UsageError(
                f"the model predicts no column {unknown[0]!r}",
                hint=f"it predicts {', '.join(list(found)[:12])}",
            )
        return {name: found[name] for name in self._order.columns or found}

    def _features(self, rows: Dataset) -> Dataset:
        """Leave out what is certainly no feature, for models that do not know their columns."""
        if self._wanted.names:
            return rows
        others = {*self._order.keep, self._bundle.manifest.label_column}
        columns = {name: array for name, array in rows.columns.items() if name not in others}
        return Dataset(columns or rows.columns, source=rows.source)

    def _good_table(
        self, table: pa.Table, pieces: Sequence[tuple[Array, dict[str, Array]]]
    ) -> pa.Table | None:
        import pyarrow as pa

        from fairlead.backends.arrow import arrow_from_array

        if not pieces:
            return None
        places = np.concatenate([at for at, _ in pieces])
        kept = {name: table[name].take(pa.array(places)) for name in self._order.keep}
        names = list(dict.fromkeys(name for _, found in pieces for name in found))
        found = {name: np.concatenate([part[name] for _, part in pieces]) for name in names}
        return pa.table(kept | {name: arrow_from_array(array) for name, array in found.items()})

    def _bad_row(self, chunk: RowChunk, at: int, reason: str) -> BadRow:
        values = chunk.table.slice(at, 1).to_pylist()[0]
        raw = json.dumps(values, ensure_ascii=False, default=str)
        return BadRow(int(chunk.rows[at]), reason, raw)


def _as_numbers(name: str, array: Array) -> tuple[Array, dict[int, str]]:
    """Read texts as numbers one by one; returns the rows that hold something else."""
    if array.dtype.kind not in "OUS" or array.ndim > 1:
        return array, {}
    numbers = np.full(len(array), np.nan)
    refused: dict[int, str] = {}
    for place, value in enumerate(array.tolist()):
        try:
            if value is not None and value != "":
                numbers[place] = float(value)
        except (TypeError, ValueError):
            shown = str(value)[:60]
            refused[place] = f"column `{name}` holds {shown!r}, but the model takes numbers"
    return numbers, refused


def _bad_table(file: str, bad: Sequence[BadRow]) -> pa.Table | None:
    import pyarrow as pa

    if not bad:
        return None
    columns: dict[str, Any] = {
        "file": pa.array([file] * len(bad), pa.string()),
        "row": pa.array([item.row for item in bad], pa.int64()),
        "reason": pa.array([item.reason for item in bad], pa.string()),
        "raw": pa.array([item.raw[:_LONGEST_RAW] for item in bad], pa.string()),
    }
    return pa.table(columns)
