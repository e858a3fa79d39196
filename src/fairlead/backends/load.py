"""Sends requests to a server from threads: at given moments (open loop) or one after another.

In an open loop the moments of sending do not depend on the answers, and latency counts from the
moment a request was meant to be sent. A server that stalls is then seen as its users see it; a
closed loop would stop asking while it stalls (coordinated omission).
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "LoadGenerator", "Sample", "Sender", "poisson_offsets"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request.

    Attributes:
        status: HTTP status; 0 when there was no answer at all.
        outputs: Output name → array, where the sender reads them.
        error: Why it failed; empty when it did not.
    """

    status: int
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    error: str = ""

    @property
    def is_served(self) -> bool:
        """Whether the request was answered with a result."""
        return self.status == 200


class Sender(Protocol):
    """One connection to a server; used by one thread only."""

    def send(self, row: int, request_id: str) -> Answer:
        """Send one row and wait for the answer; never raises for what the server does."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that was sent; times in seconds since the block began.

    Attributes:
        row: The row that was sent.
        request_id: Its id.
        intended_s: When it was meant to be sent.
        sent_s: When it was sent.
        done_s: When the answer was there.
        answer: What came back.
    """

    row: int
    request_id: str
    intended_s: float
    sent_s: float
    done_s: float
    answer: Answer

    @property
    def latency_ms(self) -> float:
        """Time from the intended moment to the answer."""
        return (self.done_s - self.intended_s) * 1e3


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    row: int
    request_id: str
    offset_s: float | None


class _Block:
    """Requests that are sent together, and the count of those still to come."""

    def __init__(self, size: int, limit_s: float | None) -> None:
        self.began = time.perf_counter()
        self.limit_s = math.inf if limit_s is None else limit_s
        self.samples: list[Sample | None] = [None] * size
        self.error: BaseException | None = None
        self.is_done = threading.Event()
        self._left = size
        self._lock = threading.Lock()

    def finish(self, index: int, sample: Sample | None, error: BaseException | None) -> None:
        with self._lock:
            self.samples[index] = sample
            self.error = self.error or error
            self._left -= 1
            if self._left == 0:
                self.is_done.set()


class LoadGenerator:
    """A fixed number of threads, each with its own connection."""

    def __init__(self, open_sender: Callable[[], Sender], *, connections: int) -> None:
        """Start the threads; connections are opened when they are first needed.

        Args:
            open_sender: Makes the connection of one thread.
            connections: Most requests under way at the same time.
        """
        self._open_sender = open_sender
        self._jobs: queue.SimpleQueue[tuple[_Block, _Job] | None] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"load-{index}", daemon=True)
            for index in range(connections)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self,
        rows: Sequence[int],
        ids: Sequence[str],
        *,
        offsets_s: Sequence[float] | None = None,
        limit_s: float | None = None,
    ) -> list[Sample]:
        """Send rows and wait for all answers.

        Args:
            rows: Row numbers, in the order of sending.
            ids: One request id per row.
            offsets_s: When each is meant to be sent, seconds from now, ascending; None sends the
                next as soon as a connection is free.
            limit_s: Requests not yet sent after this time, in seconds, are left out.

        Returns:
            One sample per row that was sent, in the same order.
        """
        if not rows:
            return []
        block = _Block(len(rows), limit_s)
        for index, (row, request_id) in enumerate(zip(rows, ids, strict=True)):
            offset = None if offsets_s is None else offsets_s[index]
            self._jobs.put((block, _Job(index, row, request_id, offset)))
        # A wait without limit would keep Ctrl-C from being heard on some platforms.
        while not block.is_done.wait(0.5):
            pass
        if block.error is not None:
            raise block.error
        return [sample for sample in block.samples if sample is not None]

    def close(self) -> None:
        """Let the requests under way end, drop the others, and close the connections."""
        self._is_stopping.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        sender: Sender | None = None
        while (item := self._jobs.get()) is not None and not self._is_stopping.is_set():
            block, job = item
            sample, failure = None, None
            if time.perf_counter() - block.began > block.limit_s:
                block.finish(job.index, None, None)
                continue
            try:
                sender = sender or self._open_sender()
                sample = _send_at(sender, block, job, self._is_stopping)
            except BaseException as exc:  # noqa: BLE001 (handed to the caller of `run`)
                failure = exc
            block.finish(job.index, sample, failure)
        if sender is not None:
            with suppress(OSError):
                sender.close()


def _send_at(sender: Sender, block: _Block, job: _Job, stop: threading.Event) -> Sample:
    intended = time.perf_counter() - block.began if job.offset_s is None else job.offset_s
    pause = intended - (time.perf_counter() - block.began)
    if pause > 0:
        stop.wait(pause)
    sent = time.perf_counter() - block.began
    answer = sender.send(job.row, job.request_id)
    done = time.perf_counter() - block.began
    return Sample(job.row, job.request_id, intended, sent, done, answer)


def poisson_offsets(rate_rps: float, count: int, rng: np.random.Generator) -> list[float]:
    """Return moments of independent arrivals, in seconds from the start, shape (count,)."""
    # Given their number, the arrivals of a Poisson process are uniform over the time they fill;
    # drawn so, the rate is met exactly.
    return [float(value) for value in np.sort(rng.uniform(0.0, count / rate_rps, count))]
