"""Scoring files: chunks are read in order, scored on all cores, kept as parts, joined at the end.

A run that is killed goes on where it was: the same command finds the parts that are done. Bad
rows go to a file of their own, with the reasons.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fairlead.backends.cpus import usable_cpus
from fairlead.backends.memory import peak_bytes
from fairlead.backends.part_files import PartCounts, PartFiles, quarantine_path
from fairlead.backends.row_chunks import RowChunk, count_rows, find_files, read_chunks
from fairlead.core.bundle import Bundle
from fairlead.core.errors import ConflictError, DataError, FairleadError, UsageError, WorkspaceError
from fairlead.core.evidence import Evidence
from fairlead.core.files import digest_file, scratch_folder
from fairlead.core.ports import Progress
from fairlead.core.report import Finding, Measure, Outcome, Report
from fairlead.serve.inference.card import CARD
from fairlead.serve.inference.chunk_scoring import ScoringOrder, wanted_columns
from fairlead.serve.inference.scoring_pools import processes, threads

__all__ = ["BatchJob", "score_files"]

_HOPELESS_ROWS = 1000
_SHOWN_REASONS = 3
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class BatchJob:
    """What to score, and how.

    Attributes:
        bundle: The model.
        data: Files, folders and patterns; `-` alone reads `stdin`.
        out: File to write: Parquet, CSV or JSON lines by its suffix.
        keep: Columns of the input to carry over.
        columns: Columns of predictions to write; none writes all.
        chunk_rows: Rows that are read, scored and kept at once.
        workers: Chunks that are scored at the same time; None takes one per core.
        engine: `threads`, `processes` or `ray`; None takes threads for models that run outside
            the interpreter, else processes.
        trust: Whether code that came with the model may run.
        cpu_limit: CPUs to plan for; None asks the machine.
        stdin: What `-` reads.
    """

    bundle: Bundle
    data: Sequence[str]
    out: Path
    keep: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    chunk_rows: int = 16_384
    workers: int | None = None
    engine: str | None = None
    trust: bool = False
    cpu_limit: int | None = None
    stdin: IO[bytes] | None = None


def score_files(job: BatchJob, progress: Progress) -> Outcome[Path]:
    """Predict every row of some files; see `api.serving.score_batch`.

    Raises:
        NotFoundError: There is no such file.
        DataError: A file cannot be read, has no rows, lacks a column, or no row is any good.
        UsageError: A column to keep has the name of a prediction column, or input is output.
        ConflictError: Another process writes the same output.
        WorkspaceError: The output cannot be written; what is done is kept for the next run.
    """
    parts = PartFiles(job.out)
    if list(job.data) != ["-"]:
        return _score(job, parts, find_files(job.data), None, progress)
    with scratch_folder("stdin") as folder:
        path = _copied(job.stdin, folder)
        return _score(job, parts, [path], digest_file(path), progress)


def _copied(stream: IO[bytes] | None, folder: Path) -> Path:
    """Keep what comes through a pipe, which can be read only once."""
    if stream is None:
        raise UsageError("there is nothing to read `-` from", hint="give a file")
    first = stream.read(_COPY_BYTES)
    start = first.lstrip()[:4]
    suffix = ".parquet" if start == b"PAR1" else ".jsonl" if start[:1] in b"{[" else ".csv"
    path = folder / f"stdin{suffix}"
    with path.open("wb") as file:
        while first:
            file.write(first)
            first = stream.read(_COPY_BYTES)
    return path


def _score(
    job: BatchJob, parts: PartFiles, files: list[Path], digest: str | None, progress: Progress
) -> Outcome[Path]:
    for path in files:
        if job.out.exists() and job.out.samefile(path):
            raise UsageError(f"{job.out} is the file that is read", hint="write to another file")
    order, workers = _order(job)
    started = time.perf_counter()
    with parts.claimed(_identity(job, files, digest)) as is_resumed:
        done = parts.done()
        if is_resumed:
            progress.note(f"going on with {job.out.name}: {len(done)} chunks are already done")
        try:
            run = _Run(job, parts, files, done, progress)
            counts = (
                run.with_ray(order, workers) if job.engine == "ray" else run.here(order, workers)
            )
            _check(job, counts, run.reasons)
            progress.note(f"joining {len(counts)} parts")
            parts.join(len(counts))
        except FairleadError as exc:
            if not isinstance(exc, WorkspaceError | ConflictError):
                parts.remove()
            raise
    seconds = time.perf_counter() - started
    resumed = sum(part.n_good + part.n_bad for part in done.values())
    return _outcome(job, files, counts, run.reasons, resumed, seconds)


def _order(job: BatchJob) -> tuple[ScoringOrder, int]:
    """Divide the cores: a tuned number of threads per run, and as many runs as fit beside."""
    cores = usable_cpus(job.cpu_limit)
    each = min(cores, job.bundle.runtime.intra_op_threads or 1)
    workers = job.workers or max(1, cores // each)
    return ScoringOrder(job.bundle.path, job.keep, job.columns, each, job.trust), workers


def _identity(job: BatchJob, files: Sequence[Path], digest: str | None) -> dict[str, Any]:
    """Return everything that the parts depend on."""
    stats = [(str(path.resolve()), path.stat()) for path in files]
    sources: list[Any] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {
        "format": 2,
        "bundle": job.bundle.digest,
        "data": sources if digest is None else digest,
        "keep": list(job.keep),
        "columns": list(job.columns),
        "chunk_rows": job.chunk_rows,
        "engine": "ray" if job.engine == "ray" else "here",
    }


class _Run:
    """One pass over all files."""

    def __init__(
        self,
        job: BatchJob,
        parts: PartFiles,
        files: Sequence[Path],
        done: dict[int, PartCounts],
        progress: Progress,
    ) -> None:
        self._job = job
        self._parts = parts
        self._files = files
        self._done = done
        self._progress = progress
        self.reasons: Counter[str] = Counter()

    def here(self, order: ScoringOrder, workers: int) -> dict[int, PartCounts]:
        """Score on the cores of this machine; returns the counts of every chunk."""
        counts = dict(self._done)
        with self._pool(order, workers) as pool:
            self._progress.begin(f"scoring {self._title}", count_rows(self._files))
            waiting: deque[tuple[int, Future[tuple[PartCounts, Counter[str]]]]] = deque()
            for number, chunk in enumerate(self._chunks()):
                if number in self._done:
                    self._progress.advance(len(chunk.rows) + len(chunk.bad))
                    continue
                waiting.append((number, pool.submit(number, chunk)))
                # A bounded number under way keeps memory constant.
                if len(waiting) > workers + 2:
                    self._take(waiting.popleft(), counts)
            while waiting:
                self._take(waiting.popleft(), counts)
        return counts

    def with_ray(self, order: ScoringOrder, workers: int) -> dict[int, PartCounts]:
        """Score on a Ray cluster; the parts of a killed run are written again."""
        from fairlead.serve.inference.ray_scoring import score_with_ray

        counts: dict[int, PartCounts] = {}
        self._progress.begin(f"scoring {self._title} on Ray", count_rows(self._files))
        tables = score_with_ray(
            order, self._files, wanted_columns(self._job.bundle, self._job.keep).names,
            chunk_rows=self._job.chunk_rows, workers=workers,
        )  # fmt: skip
        for number, (good, bad) in enumerate(tables):
            counts[number] = self._parts.write(number, good, bad)
            if bad is not None:
                self.reasons.update(bad["reason"].to_pylist())
            self._progress.advance(counts[number].n_good + counts[number].n_bad)
        return counts

    @property
    def _title(self) -> str:
        first = self._files[0].name
        return first if len(self._files) == 1 else f"{first} and {len(self._files) - 1} more"

    @contextmanager
    def _pool(self, order: ScoringOrder, workers: int) -> Iterator[Any]:
        is_native = self._job.bundle.manifest.kind == "onnx"
        engine = self._job.engine or ("threads" if is_native or workers == 1 else "processes")
        opener = threads if engine == "threads" else processes
        with opener(order, self._parts, workers) as pool:
            yield pool

    def _chunks(self) -> Iterator[RowChunk]:
        wanted = wanted_columns(self._job.bundle, self._job.keep)
        for path in self._files:
            yield from read_chunks(path, wanted, chunk_rows=self._job.chunk_rows)

    def _take(
        self,
        waiting: tuple[int, Future[tuple[PartCounts, Counter[str]]]],
        counts: dict[int, PartCounts],
    ) -> None:
        number, future = waiting
        counts[number], reasons = future.result()
        self.reasons.update(reasons)
        self._progress.advance(counts[number].n_good + counts[number].n_bad)
        if number == 0 and not counts[0].n_good and counts[0].n_bad >= _HOPELESS_ROWS:
            _check(self._job, {0: counts[0]}, self.reasons)


def _check(job: BatchJob, counts: dict[int, PartCounts], reasons: Counter[str]) -> None:
    """Refuse input of which nothing can be predicted: it is the wrong file, or the wrong model."""
    if any(part.n_good for part in counts.values()):
        return
    n_bad = sum(part.n_bad for part in counts.values())
    what = ", ".join(str(item) for item in job.data)
    if not n_bad:
        raise DataError(f"{what} holds no rows", hint="give a file with at least one row")
    shown = "; ".join(reason for reason, _ in reasons.most_common(_SHOWN_REASONS))
    raise DataError(
        f"none of the {n_bad:,} rows of {what} can be predicted: {shown}",
        hint="give rows of the kind that the model was made with",
    )


def _outcome(
    job: BatchJob,
    files: Sequence[Path],
    counts: dict[int, PartCounts],
    reasons: Counter[str],
    resumed: int,
    seconds: float,
) -> Outcome[Path]:
    n_good = sum(part.n_good for part in counts.values())
    n_bad = sum(part.n_bad for part in counts.values())
    rate = (n_good + n_bad - resumed) / seconds
    bundle = job.bundle
    written = {"predictions": str(job.out)}
    if n_bad:
        written["quarantine"] = str(quarantine_path(job.out))
    what = files[0].name if len(files) == 1 else f"{len(files)} files"
    apart = f", {n_bad:,} bad rows were set apart" if n_bad else ""
    report = Report(
        skill=CARD.id,
        title=f"Scored {what}",
        summary=f"{bundle.name} {bundle.version} predicted {n_good:,} rows in {seconds:.2f} s "
        f"({rate:,.0f} rows/s){apart}.",
        measures=(
            Measure(name="scored_rows", value=n_good, unit="rows"),
            Measure(name="throughput_rows_per_s", value=rate, unit="rows/s"),
            Measure(name="bad_rows", value=n_bad, unit="rows"),
            Measure(name="peak_memory_bytes", value=peak_bytes(), unit="bytes",
                    note="of the largest of its processes"),
            Measure(name="resumed_rows", value=resumed, unit="rows",
                    note="done by an earlier run that was interrupted"),
        ),
        findings=_findings(n_bad, reasons, job.out),
        files=written,
        details={"digest": digest_file(job.out)},
    )  # fmt: skip
    evidence = Evidence(
        metric="batch_throughput_rows_per_s",
        value=rate,
        unit="rows/s",
        method="reading, running and writing in chunks, wall time",
        subject=bundle.digest,
        sample_size=max(1, n_good + n_bad - resumed),
        skill=CARD.id,
        labels={"data": what, "cores": str(os.cpu_count())},
    )
    return Outcome(job.out, report, (evidence,))


def _findings(n_bad: int, reasons: Counter[str], out: Path) -> tuple[Finding, ...]:
    if not n_bad:
        return ()
    shown = "; ".join(f"{reason} ({n:,})" for reason, n in reasons.most_common(_SHOWN_REASONS))
    return (
        Finding(
            level="warning",
            text=f"{n_bad:,} rows could not be predicted" + (f": {shown}" if shown else ""),
            advice=f"{quarantine_path(out)} says which and why; mend them and score that part",
        ),
    )
