"""What waits for the model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from fairlead.core.ports import Array

__all__ = ["BatchResult", "Done", "Take", "Waiting"]


class BatchResult(NamedTuple):
    """One request's share of a batch that ran.

    Attributes:
        outputs: Name → array, first dimension the rows of this request.
        queue_ms: Time the request waited, in ms.
        run_ms: Time the whole batch ran, in ms.
        batch_rows: Rows of the whole batch; 0 when the answer was given before.
        parts_ms: Step → time it ran for the whole batch, in ms, of models that tell; or None.
    """

    outputs: dict[str, Array]
    queue_ms: float
    run_ms: float
    batch_rows: int
    parts_ms: Mapping[str, float] | None = None


Done = Callable[[BatchResult | Exception], None]
"""Hears once how a request ended; it must not raise."""


class Waiting:
    """One validated request that waits for the model.

    Attributes:
        feeds: Its inputs.
        n_rows: Its rows, at least 1.
        key: Requests of equal key may run together; None runs alone.
        since: When it began to wait, in seconds of `time.perf_counter`.
        done: Hears how it ended.
        deadline: When nobody waits for it any more, in seconds of `time.perf_counter`.
        priority: 1 before others, 0 normal, -1 after others.
        is_over: Whether it has ended, by an answer, an error, or because nobody waits any more.
    """

    __slots__ = ("deadline", "done", "feeds", "is_over", "key", "n_rows", "priority", "since")

    def __init__(
        self,
        feeds: dict[str, Array],
        n_rows: int,
        key: Hashable | None,
        since: float,
        done: Done,
        deadline: float = math.inf,
        priority: int = 0,
    ) -> None:
        """Describe a request."""
        self.feeds = feeds
        self.n_rows = n_rows
        self.key = key
        self.since = since
        self.done = done
        self.deadline = deadline
        self.priority = priority
        self.is_over = False


Take = Callable[[deque[Waiting], int], list[Waiting]]
"""Takes the requests that run next out of the queue; the number is the most rows of a batch."""
