"""One batch: joined, run, and split again; a bad request does not spoil the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, wait
from itertools import pairwise
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

    def aside(self, batch: list[Waiting], ways: int = 1, helpers: Executor | None = None) -> Ran:
        """Run a batch in the calling thread, and tell what it cost there.

        Args:
            batch: Its requests.
            ways: Into how many parts the rows of a lone request are divided.
            helpers: Runs the parts beside the first one; what it runs never waits for it.
        """
        before = time.thread_time()
        if ways > 1 and helpers is not None:
            results = [self._divided(batch[0], ways, helpers)]
        else:
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

    def _divided(self, item: Waiting, ways: int, helpers: Executor) -> BatchResult | Exception:
        """Run the rows of one request in several threads at once."""
        started = time.perf_counter()
        ends = [item.n_rows * way // ways for way in range(ways + 1)]
        parts = [
            {name: array[start:end] for name, array in item.feeds.items()}
            for start, end in pairwise(ends)
        ]
        others = [helpers.submit(self._run, part) for part in parts[1:]]
        try:
            found = [self._run(parts[0]), *(other.result() for other in others)]
            outputs = _below(found)
        except Exception:  # noqa: BLE001 (told by the run of the whole, where it fails again)
            wait(others)
            return self.execute([item])[0]
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


def _below(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Put the outputs of the parts of one request below one another."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    times = [part.parts_ms for part in parts if isinstance(part, Outputs)]
    if not times:
        return whole
    # They ran beside one another.
    return Outputs(whole, {name: max(each.get(name, 0.0) for each in times) for name in times[0]})


def _parts_of(outputs: dict[str, Array]) -> dict[str, float] | None:
    return outputs.parts_ms if isinstance(outputs, Outputs) else None
