"""Where chunks are scored: in threads around one model, or in processes with a model each."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from fairlead.backends.part_files import PartCounts, PartFiles
from fairlead.backends.row_chunks import RowChunk
from fairlead.serve.inference.chunk_scoring import ChunkScorer, ScoringOrder

__all__ = ["ScoringPool", "processes", "threads"]

Scored = tuple[PartCounts, Counter[str]]


class ScoringPool:
    """Scores chunks and keeps them as parts, several at a time."""

    def __init__(self, executor: Executor, scorer: ChunkScorer | None, parts: PartFiles) -> None:
        """Put a model of this process, or those of others, behind one method."""
        self._executor = executor
        self._scorer = scorer
        self._parts = parts

    def submit(self, number: int, chunk: RowChunk) -> Future[Scored]:
        """Score a chunk and keep it as a part of that number."""
        if self._scorer is None:
            return self._executor.submit(_score_in_process, number, chunk)
        return self._executor.submit(_score, self._scorer, self._parts, number, chunk)


@contextmanager
def threads(order: ScoringOrder, parts: PartFiles, workers: int) -> Iterator[ScoringPool]:
    """Share one model between threads; it must run outside the interpreter to gain from them."""
    scorer = ChunkScorer(order)
    executor = ThreadPoolExecutor(workers, "fairlead-batch")
    try:
        yield ScoringPool(executor, scorer, parts)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        scorer.close()


@contextmanager
def processes(order: ScoringOrder, parts: PartFiles, workers: int) -> Iterator[ScoringPool]:
    """Load the model once per process."""
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_load,
        initargs=(order, parts),
    )
    try:
        yield ScoringPool(executor, None, parts)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _score(scorer: ChunkScorer, parts: PartFiles, number: int, chunk: RowChunk) -> Scored:
    good, bad = scorer.score(chunk)
    reasons = Counter(bad["reason"].to_pylist()) if bad is not None else Counter[str]()
    return parts.write(number, good, bad), reasons


class _Own:
    """The model of a process that does nothing else."""

    scorer: ChunkScorer
    parts: PartFiles


def _load(order: ScoringOrder, parts: PartFiles) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Own.scorer = ChunkScorer(order)
    _Own.parts = parts


def _end_with_parent() -> None:
    """A killed parent tells nobody; its sentinel does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _score_in_process(number: int, chunk: RowChunk) -> Scored:
    return _score(_Own.scorer, _Own.parts, number, chunk)
