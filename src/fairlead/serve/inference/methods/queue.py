"""What waits for the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from fairlead.core.ports import Array

__all__ = ["BatchResult", "Take", "Waiting"]


class BatchResult(NamedTuple):
    """One request's share of a batch that ran.

    Attributes:
        outputs: Name → array, first dimension the rows of this request.
        queue_ms: Time the request waited, in ms.
        run_ms: Time the whole batch ran, in ms.
        batch_rows: Rows of the whole batch.
    """

    outputs: dict[str, Array]
    queue_ms: float
    run_ms: float
    batch_rows: int


@dataclass(slots=True)
class Waiting:
    """One validated request that waits for the model.

    Attributes:
        feeds: Its inputs.
        n_rows: Its rows, at least 1.
        key: Requests of equal key may run together; None runs alone.
        since: When it began to wait, in seconds of `time.perf_counter`.
        future: Where its result goes.
    """

    feeds: dict[str, Array]
    n_rows: int
    key: tuple[tuple[int, ...], ...] | None
    since: float
    future: asyncio.Future[BatchResult] = field(repr=False)


Take = Callable[[deque[Waiting], int], list[Waiting]]
"""Takes the requests that run next out of the queue; the number is the most rows of a batch."""
