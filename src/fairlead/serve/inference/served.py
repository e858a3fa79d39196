"""What is known of one request once it has been answered, for metrics, outcomes and the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, overload, runtime_checkable

from fairlead.core.ports import Array, Feeds
from fairlead.serve.inference.arms import Arm

__all__ = ["DurableObserver", "Observer", "PromptObserver", "ServedRequest", "ServedTogether"]


class ServedRequest(NamedTuple):
    """One request that an arm took, answered or failed.

    Attributes:
        id: Id of the request.
        arm: The arm that took it.
        status: HTTP status of the answer; that of a shadow is heard by nobody.
        feeds: The validated inputs, or None when they did not fit.
        outputs: The outputs, or None when it failed.
        n_rows: Rows of the request.
        queue_ms: Time it waited for the model, in ms.
        run_ms: Time the model ran, in ms, shared by the whole batch.
        total_ms: Time from arrival to answer, in ms.
        batch_rows: Rows that ran together; 0 when the answer came from the response cache.
        at: End of the request, seconds since the epoch.
        trace_id: Id of the distributed trace it belongs to, or "".
        error: What went wrong, or "".
        is_probe: Whether it only tested the server; metrics count it, nothing remembers it.
        caller: Who asked, as the guard knows them, or "".
        parts_ms: Step → time it ran for the whole batch, in ms, of models that tell; or None.
    """

    id: str
    arm: Arm
    status: int
    feeds: Feeds | None
    outputs: dict[str, Array] | None
    n_rows: int
    queue_ms: float
    run_ms: float
    total_ms: float
    batch_rows: int
    at: float
    trace_id: str = ""
    error: str = ""
    is_probe: bool = False
    caller: str = ""
    parts_ms: Mapping[str, float] | None = None

    @property
    def is_cached(self) -> bool:
        """Whether the answer was given before: nothing ran."""
        return self.status == 200 and self.batch_rows == 0


class ServedTogether(Sequence[ServedRequest]):
    """Requests that one arm answered in one batch: what they share is said once.

    It is a sequence of served requests, each made when somebody looks at it. Observers that take
    columns find them here, one value per request, without an object per request.

    Attributes:
        arm: The arm that answered.
        ids: Their ids.
        feeds: Their validated inputs, one below the other.
        outputs: Their outputs in the same order.
        n_rows: Rows of each.
        queue_ms: Time each waited for the model, in ms.
        run_ms: Time the model ran, in ms.
        total_ms: Time from each one's arrival to the end of the run, in ms.
        batch_rows: Rows that ran together.
        at: End of the run, seconds since the epoch.
        trace_ids: Ids of distributed traces, or "".
        callers: Who asked, as the guard knows them, or "".
        parts_ms: Step → time it ran for the whole batch, in ms, of models that tell; or None.
    """

    __slots__ = (
        "arm", "at", "batch_rows", "callers", "feeds", "ids", "n_rows", "outputs", "parts_ms",
        "queue_ms", "run_ms", "total_ms", "trace_ids",
    )  # fmt: skip

    def __init__(
        self,
        arm: Arm,
        ids: list[str],
        feeds: dict[str, Array],
        outputs: dict[str, Array],
        n_rows: list[int],
        queue_ms: list[float],
        run_ms: float,
        total_ms: list[float],
        batch_rows: int,
        at: float,
        trace_ids: list[str],
        callers: list[str],
        parts_ms: Mapping[str, float] | None,
    ) -> None:
        """Describe a batch."""
        self.arm = arm
        self.ids = ids
        self.feeds = feeds
        self.outputs = outputs
        self.n_rows = n_rows
        self.queue_ms = queue_ms
        self.run_ms = run_ms
        self.total_ms = total_ms
        self.batch_rows = batch_rows
        self.at = at
        self.trace_ids = trace_ids
        self.callers = callers
        self.parts_ms = parts_ms

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> ServedRequest: ...

    @overload
    def __getitem__(self, place: slice) -> list[ServedRequest]: ...

    def __getitem__(self, place: int | slice) -> ServedRequest | list[ServedRequest]:
        if isinstance(place, slice):
            return list(self)[place]
        at = range(len(self))[place]
        return self._request(at, sum(self.n_rows[:at]))

    def __iter__(self) -> Iterator[ServedRequest]:
        start = 0
        for place, rows in enumerate(self.n_rows):
            yield self._request(place, start)
            start += rows

    def _request(self, place: int, start: int) -> ServedRequest:
        """Return one request, whose first row of the batch is `start`."""
        rows = self.n_rows[place]
        end = start + rows
        return ServedRequest(
            self.ids[place],
            self.arm,
            200,
            {name: array[start:end] for name, array in self.feeds.items()},
            {name: array[start:end] for name, array in self.outputs.items()},
            rows,
            self.queue_ms[place],
            self.run_ms,
            self.total_ms[place],
            self.batch_rows,
            self.at,
            self.trace_ids[place],
            caller=self.callers[place],
            parts_ms=self.parts_ms,
        )


Observer = Callable[[Sequence[ServedRequest]], None]
"""Told of requests some at a time, in the order in which they ended; it must not raise.

What it gets may be `ServedTogether`, whose columns cost less than a look at every request. No
requests at all say that a model is about to go: nothing may refer to it from then on."""


@runtime_checkable
class PromptObserver(Protocol):
    """An observer that hears of every request before it is answered."""

    is_prompt: bool

    def __call__(self, requests: Sequence[ServedRequest], /) -> None:
        """Hear of some requests."""


@runtime_checkable
class DurableObserver(Protocol):
    """An observer that answers wait for: what it heard of must survive before they are given."""

    def __call__(self, requests: Sequence[ServedRequest], /) -> None:
        """Hear of some requests."""

    def commit(self, done: Callable[[Exception | None], None], /) -> None:
        """Call back, from any thread, once everything heard so far is safe, or with the reason."""
