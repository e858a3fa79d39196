"""One batch: joined, run, and split again; a bad request does not spoil the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fairlead.core.ports import Array, Outputs
from fairlead.serve.inference.methods.queue import BatchResult, Waiting
from fairlead.serve.inference.padding import Padding

__all__ = ["BatchRun", "Ran", "Run"]

Run = Callable[[dict[str, Array]], dict[str, Array]]
"""Executes a model on one batch."""


class Ran(NamedTuple):
    """What became of a batch that ran in a thread.

    Attributes:
        results: One per request: its share of the outputs, or why there is none.
        cpu_s: CPU time that the thread spent, in seconds.
    """

    results: list[BatchResult | Exception]
    cpu_s: float


class BatchRun:
    """Runs batches of one arm; safe to call from several threads."""

    def __init__(self, run: Run, padding: Padding | None) -> None:
        """Prepare.

        Args:
            run: Executes the model.
            padding: Makes sequences of different lengths one batch; None where there are none.
        """
        self._run = run
        self._padding = padding

    def aside(self, batch: list[Waiting]) -> Ran:
        """Run a batch in the calling thread, and tell what it cost there."""
        before = time.thread_time()
        results = self.execute(batch)
        return Ran(results, time.thread_time() - before)

    def execute(self, batch: list[Waiting]) -> list[BatchResult | Exception]:
        """Run a batch; when it fails, run its requests one by one."""
        started = time.perf_counter()
        try:
            if len(batch) == 1:
                return [self._alone(batch[0], started)]
            return self._together(batch, started)
        except Exception as exc:  # noqa: BLE001 (handed on to the requests)
            if len(batch) == 1:
                return [exc]
        # One of them is to blame, and the others must not pay for it.
        return [self.execute([item])[0] for item in batch]

    def _alone(self, item: Waiting, started: float) -> BatchResult:
        outputs = self._run(item.feeds)
        ended = time.perf_counter()
        return BatchResult(
            outputs,
            (started - item.since) * 1e3,
            (ended - started) * 1e3,
            item.n_rows,
            _parts_of(outputs),
        )

    def _together(self, batch: list[Waiting], started: float) -> list[BatchResult | Exception]:
        feeds = self._joined(batch)
        answer = self._run(feeds)
        outputs, parts_ms = list(answer.items()), _parts_of(answer)
        run_ms = (time.perf_counter() - started) * 1e3
        rows = sum([item.n_rows for item in batch])
        results: list[BatchResult | Exception] = []
        at = 0
        for item in batch:
            end = at + item.n_rows
            share = {name: array[at:end] for name, array in outputs}
            if self._padding is not None:
                share = self._padding.cut(share, item.feeds, feeds)
            queue_ms = (started - item.since) * 1e3
            results.append(BatchResult(share, queue_ms, run_ms, rows, parts_ms))
            at = end
        return results

    def _joined(self, batch: list[Waiting]) -> dict[str, Array]:
        if self._padding is not None:
            return self._padding.join([item.feeds for item in batch])
        return {
            name: np.concatenate([item.feeds[name] for item in batch]) for name in batch[0].feeds
        }


def _parts_of(outputs: dict[str, Array]) -> dict[str, float] | None:
    return outputs.parts_ms if isinstance(outputs, Outputs) else None
