"""Scoring a file: read, bind, run and write in batches, with constant memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from fairlead.backends.cpus import usable_cpus
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import UsageError
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Progress, Runner
from fairlead.core.report import Measure, Outcome, Report
from fairlead.core.signature import STRING
from fairlead.measure.profile import flatten_outputs
from fairlead.measure.quality import run_batches
from fairlead.serve.inference.arms import free_signature
from fairlead.serve.inference.card import CARD

__all__ = ["score_file"]


def score_file(
    bundle: Bundle,
    data: Path,
    out: Path,
    *,
    keep: tuple[str, ...],
    batch_rows: int,
    trust: bool,
    progress: Progress,
) -> Outcome[Path]:
    """Predict every row of a file; see `api.serving.score_batch`.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file cannot be read, is empty, or lacks a column of the model.
        UsageError: A column to keep has the name of a prediction column, or input is output.
        WorkspaceError: The output cannot be written.
    """
    from fairlead.backends.row_stream import count_rows, parquet_writer, stream_rows
    from fairlead.backends.runners import open_runner

    if data.exists() and out.exists() and data.samefile(out):
        raise UsageError(f"{out} is the file that is read", hint="write to another file")
    numbers, texts = _needed(bundle)
    batches = stream_rows(data, numbers=numbers, texts=texts, keep=keep, batch_rows=batch_rows)
    threads = bundle.runtime.intra_op_threads or usable_cpus()
    runtime = bundle.runtime.model_copy(update={"intra_op_threads": threads})
    runner = open_runner(bundle, runtime=runtime, trust=trust)
    n_rows = count_rows(data)
    started = time.perf_counter()
    try:
        progress.begin(f"scoring {data.name}", n_rows)
        with parquet_writer(out) as writer:
            for batch in batches:
                writer.write(_score(bundle, runner, batch, keep))
                progress.advance(batch.n_rows)
    finally:
        runner.close()
    return _outcome(bundle, data, out, writer.n_rows, time.perf_counter() - started)


def _needed(bundle: Bundle) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns that the model takes as numbers and as text; none when nobody knows."""
    manifest = bundle.manifest
    inputs = manifest.signature.inputs
    if len(inputs) == 1 and manifest.feature_columns:
        is_text = inputs[0].dtype == STRING
        columns = tuple(manifest.feature_columns)
        return ((), columns) if is_text else (columns, ())
    if len(inputs) == 1:
        return (), ()
    texts = tuple(spec.name for spec in inputs if spec.dtype == STRING)
    return tuple(spec.name for spec in inputs if spec.dtype != STRING), texts


def _score(
    bundle: Bundle, runner: Runner, batch: Dataset, keep: tuple[str, ...]
) -> Mapping[str, Array]:
    manifest = bundle.manifest
    signature = free_signature(bundle.signature)
    feeds = bind(
        _features(bundle, batch, keep), signature, feature_columns=manifest.feature_columns
    )
    outputs = run_batches(runner, feeds, bundle.runtime.max_batch_size)
    columns = flatten_outputs(manifest, outputs)
    taken = sorted(set(keep) & set(columns))
    if taken:
        raise UsageError(
            f"the column {taken[0]!r} would be both kept and predicted",
            hint="rename the column in the input",
        )
    return {**{name: batch.columns[name] for name in keep}, **columns}


def _features(bundle: Bundle, batch: Dataset, keep: tuple[str, ...]) -> Dataset:
    """Leave out what is certainly no feature, for models that do not know their columns."""
    if any(_needed(bundle)):
        return batch
    others = {*keep, bundle.manifest.label_column}
    columns = {name: array for name, array in batch.columns.items() if name not in others}
    return Dataset(columns or batch.columns, source=batch.source)


def _outcome(bundle: Bundle, data: Path, out: Path, n_rows: int, seconds: float) -> Outcome[Path]:
    rate = n_rows / seconds
    report = Report(
        skill=CARD.id,
        title=f"Scored {data.name}",
        summary=f"{bundle.name} {bundle.version} predicted {n_rows:,} rows in {seconds:.2f} s.",
        measures=(
            Measure(name="scored_rows", value=n_rows, unit="rows"),
            Measure(name="throughput_rows_per_s", value=rate, unit="rows/s"),
        ),
        files={"predictions": str(out)},
    )
    evidence = Evidence(
        metric="batch_throughput_rows_per_s",
        value=rate,
        unit="rows/s",
        method="reading, running and writing in batches, wall time",
        subject=bundle.digest,
        sample_size=n_rows,
        skill=CARD.id,
        labels={"data": data.name},
    )
    return Outcome(out, report, (evidence,))
