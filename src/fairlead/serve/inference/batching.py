"""The queue in front of a model: bounded, joined by the tick of the event loop, and fair.

A request joins what has arrived in the same tick. Short runs happen in the loop's own thread,
longer ones in a few threads while the next batch gathers. Nothing whose time is up is ever run,
and what would wait too long is refused at the door.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fairlead.core.errors import OverloadedError
from fairlead.core.ports import Array
from fairlead.serve.inference.batch_run import BatchRun, Ran, Run
from fairlead.serve.inference.methods.queue import BatchResult, Done, Take, Waiting
from fairlead.serve.inference.pace import Pace
from fairlead.serve.inference.padding import Padding
from fairlead.serve.inference.row_costs import RowCosts

__all__ = ["BatchQueue", "BatchResult", "QueueLimits"]

_MAX_SHAPES = 64
"""Shapes of rows of which it is remembered what they cost."""
_PATIENCE = {-1: 0.5, 0: 1.0, 1: 2.0}
"""Priority → how much of the longest wait, and of the room, it may use."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a queue may hold and how it runs.

    Attributes:
        max_batch_rows: Most rows that run at once.
        max_wait_s: Longest time that a batch which is not full waits for more, in seconds; a
            lone request never waits.
        max_pending: Requests that may wait or run.
        max_delay_s: Requests that would wait longer for the model than this are refused.
        latency_budget_s: Batches are kept so small that a request ends within this time, where
            the model allows it; infinite for as large as they may be.
        inline_s: Batches expected to run shorter than this run in the event loop's thread.
        parallel_runs: Batches that may run at the same time in threads.
        may_divide: Whether the rows of one request may run in several threads.
    """

    max_batch_rows: int = 32
    max_wait_s: float = 0.0
    max_pending: int = 1024
    max_delay_s: float = math.inf
    latency_budget_s: float = math.inf
    inline_s: float = 2e-4
    parallel_runs: int = 1
    may_divide: bool = False


class BatchQueue:
    """Runs waiting requests of one arm; lives in one event loop."""

    def __init__(
        self,
        run: Run,
        *,
        take: Take,
        is_joinable: bool,
        limits: QueueLimits,
        name: str,
        padding: Padding | None = None,
    ) -> None:
        """Prepare the queue.

        Args:
            run: Executes the model on one batch; called from several threads.
            take: The method that picks what runs next.
            is_joinable: Whether rows of several requests may run together.
            limits: How much it may hold.
            name: Name of the arm, for threads and messages.
            padding: Makes sequences of different lengths one batch; None keeps them apart.
        """
        self._run = run
        self._batch_run = BatchRun(run, padding)
        self._take = take
        self.is_joinable = is_joinable
        self._limits = limits
        self._runs_at_once = is_joinable and limits.max_wait_s <= 0
        self._may_divide = is_joinable and limits.may_divide
        self._name = name
        self._padding = padding
        self._pace = Pace(limits.inline_s, has_budget=limits.latency_budget_s < math.inf)
        self._waiting: deque[Waiting] = deque()
        self._running: list[list[Waiting]] = []
        self._running_rows = 0
        self._busy = 0
        self._costs: dict[Hashable | None, RowCosts] = {}
        self._rows = 0
        self._pending = 0
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._reaper: asyncio.TimerHandle | None = None
        self._reaps_at = math.inf
        self._executor = ThreadPoolExecutor(limits.parallel_runs, f"fairlead-{name}")
        self._helpers = ThreadPoolExecutor(limits.parallel_runs, f"fairlead-{name}-part")

    @property
    def limits(self) -> QueueLimits:
        """How much it may hold and how it runs."""
        return self._limits

    @property
    def n_pending(self) -> int:
        """Requests that wait or run."""
        return self._pending

    @property
    def expected_wait_s(self) -> float:
        """Seconds that a request which came now would wait for the model."""
        return self._pace.wait_s(self._rows, self._limits.parallel_runs)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, after which the queue will probably have room."""
        return max(1, math.ceil(self.expected_wait_s))

    def check_room(self, priority: int = 0, deadline: float = math.inf) -> None:
        """Refuse a request that the queue could not serve; cheap enough to ask before decoding.

        Raises:
            OverloadedError: The queue is full, or the request would wait too long.
        """
        most = self._limits.max_pending
        if self._pending >= (most if priority >= 0 else most * _PATIENCE[priority]):
            raise OverloadedError(
                f"`{self._name}` already holds {self._pending} requests",
                hint=f"send it again in {self.retry_after_s} s, or add replicas",
                retry_after_s=self.retry_after_s,
            )
        if not self._rows:
            return
        wait_s = self._pace.wait_s(self._rows, self._limits.parallel_runs)
        patience_s = self._limits.max_delay_s * _PATIENCE[priority]
        if wait_s > patience_s or (deadline < math.inf and wait_s > deadline - time.perf_counter()):
            raise OverloadedError(
                f"`{self._name}` could begin with the request in {wait_s:.2g} s only, "
                "which is too late",
                hint=f"send it again in {self.retry_after_s} s, or add replicas",
                retry_after_s=self.retry_after_s,
            )

    @property
    def is_free(self) -> bool:
        """Whether a batch may run at once: nothing waits or runs, nor is it meant to wait."""
        return not (self._pending or self._waiting) and self._runs_at_once

    def batch_rows(self) -> int:
        """Return how many rows may run together, at least 1.

        A batch takes half of the latency budget at most: whoever comes when one has just begun
        waits for its end, and then for his own. It is not made smaller for those who waited for
        longer: that would only hold up everybody behind them.
        """
        most, budget_s = self._limits.max_batch_rows, self._limits.latency_budget_s
        if budget_s == math.inf:
            return most
        return max(1, int(min(most, self._pace.rows_within(budget_s / 2))))

    def run_now(self, feeds: dict[str, Array], n_rows: int) -> dict[str, Array] | None:
        """Run validated requests, joined by the caller, in the event loop's thread.

        Returns:
            The outputs; None where the run would take long, or failed: its requests must go
            through the queue, which keeps the bad ones apart.
        """
        if not self._pace.is_short(n_rows):
            return None
        started = time.perf_counter()
        try:
            outputs = self._run(feeds)
        except Exception:  # noqa: BLE001 (it is run again, where somebody hears of it)
            return None
        self._pace.learn_inline(time.perf_counter() - started, n_rows)
        return outputs

    def submit(
        self,
        feeds: dict[str, Array],
        n_rows: int,
        done: Done,
        *,
        deadline: float = math.inf,
        priority: int = 0,
    ) -> Waiting:
        """Queue one validated request.

        Args:
            feeds: Its inputs.
            n_rows: Its rows.
            done: Hears once how it ended, in the event loop's thread.
            deadline: When nobody waits any more, in seconds of `time.perf_counter`.
            priority: 1 before others, 0 normal, -1 after others and refused first.

        Returns:
            A handle for `cancel`.

        Raises:
            OverloadedError: The queue is full, or the request would wait too long.
        """
        self.check_room(priority, deadline)
        loop = asyncio.get_running_loop()
        item = Waiting(
            feeds, n_rows, self._key(feeds), time.perf_counter(), done, deadline, priority
        )
        self._line_up(item)
        self._rows += n_rows
        self._pending += 1
        if deadline < self._reaps_at:
            self._reap_at(deadline, loop)
        if self._timer is not None and self._wait_for_company() <= 0:
            self._timer.cancel()
            self._timer, self._is_scheduled = None, False
        self._schedule(loop)
        return item

    def cancel(self, item: Waiting) -> None:
        """Forget a request that nobody waits for any more; it is not run if it has not begun."""
        if not item.is_over:
            item.is_over = True
            self._pending -= 1

    def rest(self) -> None:
        """Stop the clock of a queue that holds nothing: the event loop refers to it by that."""
        if self._reaper is not None and not self._pending:
            self._reaper.cancel()
            self._reaper, self._reaps_at = None, math.inf

    def close(self) -> None:
        """Let running batches end and free the threads."""
        self._executor.shutdown(wait=True)
        self._helpers.shutdown(wait=True)

    def _key(self, feeds: dict[str, Array]) -> Hashable | None:
        if not self.is_joinable:
            return None
        if self._padding is not None:
            return self._padding.key(feeds)
        if len(feeds) == 1:
            (array,) = feeds.values()
            return array.shape[1:]
        return tuple([array.shape[1:] for array in feeds.values()])

    def _line_up(self, item: Waiting) -> None:
        waiting = self._waiting
        if not waiting or waiting[-1].priority >= item.priority:
            waiting.append(item)
            return
        place = len(waiting)
        while place and waiting[place - 1].priority < item.priority:
            place -= 1
        waiting.insert(place, item)

    def _end(self, item: Waiting, result: BatchResult | Exception) -> None:
        if not item.is_over:
            item.is_over = True
            self._pending -= 1
            item.done(result)

    def _reap_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
        self._reaps_at = when
        delay_s = max(0.0, when - time.perf_counter())
        self._reaper = loop.call_later(delay_s, self._reap, loop)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what has waited or run beyond its deadline."""
        self._reaper, self._reaps_at = None, math.inf
        now = time.perf_counter()
        held = [*self._waiting, *(item for batch in self._running for item in batch)]
        for item in held:
            if item.deadline <= now:
                self._end(item, TimeoutError())
        soonest = min((item.deadline for item in held if not item.is_over), default=math.inf)
        if soonest < self._reaps_at:
            self._reap_at(soonest, loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop, delay_s: float = 0.0) -> None:
        if self._is_scheduled or self._busy >= self._limits.parallel_runs:
            return
        self._is_scheduled = True
        # At the end of this tick, so that everything which arrived in it is seen.
        if delay_s > 0:
            self._timer = loop.call_later(delay_s, self._flush, loop)
        else:
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_scheduled, self._timer = False, None
        self._drop_ended()
        if not self._waiting or self._busy >= self._limits.parallel_runs:
            return
        wait_s = self._wait_for_company()
        if wait_s > 0:
            self._schedule(loop, wait_s)
            return
        batch = []
        now = time.perf_counter()
        for item in self._take(self._waiting, self._rows_to_run()):
            self._rows -= item.n_rows
            if item.is_over:
                continue
            if item.deadline <= now:
                self._end(item, TimeoutError())
            else:
                batch.append(item)
        if batch:
            self._start(batch, loop)
        if self._waiting:
            self._schedule(loop)

    def _drop_ended(self) -> None:
        while self._waiting and self._waiting[0].is_over:
            self._rows -= self._waiting.popleft().n_rows

    def _rows_to_run(self) -> int:
        most = self.batch_rows()
        costs = self._costs.get(self._waiting[0].key)
        if costs is None:
            return most
        # Every thread gets its part of what is there: no row waits while another thread idles, and
        # none of them is left with single rows while the other one has all the company.
        share = -(-(self._rows + self._running_rows) // self._limits.parallel_runs)
        return costs.rows_to_run(min(most, self._rows), share)

    def _wait_for_company(self) -> float:
        if self._limits.max_wait_s <= 0 or len(self._waiting) < 2:
            return 0.0
        if self._rows >= self._limits.max_batch_rows:
            return 0.0
        return self._limits.max_wait_s - (time.perf_counter() - self._waiting[0].since)

    def _start(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        rows = batch[0].n_rows if len(batch) == 1 else sum([item.n_rows for item in batch])
        if self._pace.is_short(rows):
            results = self._batch_run.execute(batch)
            ran = _first_success(results)
            if ran is not None:
                self._pace.learn_inline(ran.run_ms / 1e3, ran.batch_rows)
            self._deliver(batch, results)
            return
        ways = self._ways(batch, rows)
        self._running.append(batch)
        self._running_rows += rows
        self._busy += ways
        work = loop.run_in_executor(
            self._executor, self._batch_run.aside, batch, ways, self._helpers
        )

        def finish(done: asyncio.Future[Ran]) -> None:
            self._running.remove(batch)
            self._running_rows -= rows
            self._busy -= ways
            results, cpu_s = done.result()
            self._learn(batch[0].key, rows, ways, results, cpu_s)
            if self._waiting and not self._is_scheduled:
                # The thread has its next batch before the answers of this one are written.
                self._flush(loop)
            self._deliver(batch, results)
            if self._waiting:
                self._schedule(loop)

        work.add_done_callback(finish)

    def _ways(self, batch: list[Waiting], rows: int) -> int:
        """Return between how many threads a lone request with many rows is divided."""
        free = self._limits.parallel_runs - self._busy
        is_alone = len(batch) == 1 and not self._waiting
        if free < 2 or rows < 2 or not is_alone or not self._may_divide:
            return 1
        costs = self._costs.get(batch[0].key)
        part = -(-rows // free)
        part = part if costs is None else costs.rows_to_run(rows, part)
        return min(free, -(-rows // part))

    def _learn(
        self,
        key: Hashable | None,
        rows: int,
        ways: int,
        results: list[BatchResult | Exception],
        cpu_s: float,
    ) -> None:
        """Take note of a batch that ran in a thread."""
        ran = _first_success(results)
        if ran is None:
            return
        run_s, each = ran.run_ms / 1e3, max(1, ran.batch_rows // ways)
        self._pace.learn_aside(run_s, cpu_s, each)
        if not self.is_joinable or ran.batch_rows != rows:
            return
        costs = self._costs.get(key)
        if costs is None:
            if len(self._costs) >= _MAX_SHAPES:
                self._costs.clear()
            costs = self._costs[key] = RowCosts()
        # What waits for a device, or for other threads of the run, costs time rather than work.
        costs.learn(each, cpu_s if cpu_s > run_s / 2 else run_s)

    def _deliver(self, batch: list[Waiting], results: list[BatchResult | Exception]) -> None:
        for item, result in zip(batch, results, strict=True):
            if not item.is_over:
                item.is_over = True
                self._pending -= 1
                item.done(result)


def _first_success(results: list[BatchResult | Exception]) -> BatchResult | None:
    return next((each for each in results if isinstance(each, BatchResult)), None)
