"""The queue in front of a model: bounded, joined by the tick of the event loop, and fair.

A request joins what has arrived in the same tick. Short runs happen in the loop's own thread,
longer ones in a few threads while the next batch gathers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fairlead.core.errors import OverloadedError
from fairlead.core.ports import Array
from fairlead.serve.inference.methods.queue import BatchResult, Take, Waiting

__all__ = ["BatchQueue", "BatchResult", "QueueLimits"]

Run = Callable[[dict[str, Array]], dict[str, Array]]

_RECENT_RUNS = 9


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a queue may hold and how it runs.

    Attributes:
        max_batch_rows: Most rows that run at once.
        max_wait_s: Longest time that a batch which is not full waits for more, in seconds; a
            lone request never waits.
        max_pending: Requests that may wait or run.
        inline_s: Batches expected to run shorter than this run in the event loop's thread.
        parallel_runs: Batches that may run at the same time in threads.
    """

    max_batch_rows: int = 32
    max_wait_s: float = 0.0
    max_pending: int = 1024
    inline_s: float = 2e-4
    parallel_runs: int = 1


class BatchQueue:
    """Runs waiting requests of one arm; lives in one event loop."""

    def __init__(
        self, run: Run, *, take: Take, is_joinable: bool, limits: QueueLimits, name: str
    ) -> None:
        """Prepare the queue.

        Args:
            run: Executes the model on one batch; called from several threads.
            take: The method that picks what runs next.
            is_joinable: Whether rows of several requests may run together.
            limits: How much it may hold.
            name: Name of the arm, for threads and messages.
        """
        self._run = run
        self._take = take
        self.is_joinable = is_joinable
        self._limits = limits
        self._name = name
        self._waiting: deque[Waiting] = deque()
        self._running = 0
        self._pending = 0
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_RUNS)
        self._executor = ThreadPoolExecutor(limits.parallel_runs, f"fairlead-{name}")

    @property
    def n_pending(self) -> int:
        """Requests that wait or run."""
        return self._pending

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, after which the queue will probably have room."""
        expected_s = self._expected_s(sum(item.n_rows for item in self._waiting))
        return max(1, math.ceil(expected_s)) if math.isfinite(expected_s) else 1

    def submit(self, feeds: dict[str, Array], n_rows: int) -> asyncio.Future[BatchResult]:
        """Queue one validated request.

        Raises:
            OverloadedError: The queue is full.
        """
        if self._pending >= self._limits.max_pending:
            raise OverloadedError(
                f"`{self._name}` already holds {self._pending} requests",
                hint=f"send it again in {self.retry_after_s} s, or add replicas",
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BatchResult] = loop.create_future()
        key = tuple(array.shape[1:] for array in feeds.values()) if self.is_joinable else None
        self._waiting.append(Waiting(feeds, n_rows, key, time.perf_counter(), future))
        self._pending += 1
        future.add_done_callback(self._leave)
        if self._timer is not None and self._wait_for_company() <= 0:
            self._timer.cancel()
            self._timer, self._is_scheduled = None, False
        self._schedule(loop)
        return future

    def close(self) -> None:
        """Let running batches end and free the threads."""
        self._executor.shutdown(wait=True)

    def _leave(self, future: asyncio.Future[BatchResult]) -> None:  # noqa: ARG002 (callback)
        self._pending -= 1

    def _schedule(self, loop: asyncio.AbstractEventLoop, delay_s: float = 0.0) -> None:
        if self._is_scheduled or self._running >= self._limits.parallel_runs:
            return
        self._is_scheduled = True
        # At the end of this tick, so that everything which arrived in it is seen.
        if delay_s > 0:
            self._timer = loop.call_later(delay_s, self._flush, loop)
        else:
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_scheduled, self._timer = False, None
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()
        if not self._waiting:
            return
        wait_s = self._wait_for_company()
        if wait_s > 0:
            self._schedule(loop, wait_s)
            return
        taken = self._take(self._waiting, self._limits.max_batch_rows)
        batch = [item for item in taken if not item.future.done()]
        if batch:
            self._start(batch, loop)
        if self._waiting:
            self._schedule(loop)

    def _wait_for_company(self) -> float:
        if self._limits.max_wait_s <= 0 or len(self._waiting) < 2:
            return 0.0
        if sum(item.n_rows for item in self._waiting) >= self._limits.max_batch_rows:
            return 0.0
        return self._limits.max_wait_s - (time.perf_counter() - self._waiting[0].since)

    def _start(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        rows = sum(item.n_rows for item in batch)
        if self._expected_s(rows) < self._limits.inline_s:
            self._deliver(batch, self._execute(batch))
            return
        self._running += 1
        work = loop.run_in_executor(self._executor, self._execute, batch)

        def finish(done: asyncio.Future[list[BatchResult | Exception]]) -> None:
            self._running -= 1
            self._deliver(batch, done.result())
            if self._waiting:
                self._schedule(loop)

        work.add_done_callback(finish)

    def _deliver(self, batch: list[Waiting], results: Sequence[BatchResult | Exception]) -> None:
        ran = [result for result in results if isinstance(result, BatchResult)]
        if ran:
            self._learn(ran[0])
        for item, result in zip(batch, results, strict=True):
            if item.future.done():
                continue
            if isinstance(result, BatchResult):
                item.future.set_result(result)
            else:
                item.future.set_exception(result)

    def _learn(self, result: BatchResult) -> None:
        self._recent.append((result.run_ms / 1e3, result.batch_rows))

    def _expected_s(self, rows: int) -> float:
        """Seconds that a batch will take, the lower median by recent runs; infinite without one.

        A smaller batch is taken to last as long as the one that ran: most of a short run does not
        depend on the rows, and an arm that gets few requests must not look slower than its twin
        that gets many. One run that the machine interrupted changes nothing.
        """
        guesses = sorted(run_s * max(1.0, rows / ran) for run_s, ran in self._recent)
        return guesses[(len(guesses) - 1) // 2] if guesses else math.inf

    def _execute(self, batch: list[Waiting]) -> list[BatchResult | Exception]:
        started = time.perf_counter()
        try:
            if len(batch) == 1:
                return [self._alone(batch[0], started)]
            return self._together(batch, started)
        except Exception as exc:  # noqa: BLE001 (handed on to the requests)
            if len(batch) == 1:
                return [exc]
        # One of them is to blame, and the others must not pay for it.
        return [self._execute([item])[0] for item in batch]

    def _alone(self, item: Waiting, started: float) -> BatchResult:
        outputs = self._run(item.feeds)
        return _result(item, outputs, started, item.n_rows)

    def _together(self, batch: list[Waiting], started: float) -> list[BatchResult | Exception]:
        names = batch[0].feeds
        feeds = {name: np.concatenate([item.feeds[name] for item in batch]) for name in names}
        outputs = self._run(feeds)
        rows = sum(item.n_rows for item in batch)
        results: list[BatchResult | Exception] = []
        at = 0
        for item in batch:
            end = at + item.n_rows
            share = {name: array[at:end] for name, array in outputs.items()}
            results.append(_result(item, share, started, rows))
            at = end
        return results


def _result(
    item: Waiting, outputs: dict[str, Array], started: float, batch_rows: int
) -> BatchResult:
    return BatchResult(
        outputs=outputs,
        queue_ms=(started - item.since) * 1e3,
        run_ms=(time.perf_counter() - started) * 1e3,
        batch_rows=batch_rows,
    )
