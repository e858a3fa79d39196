"""What is known of one request once it has been answered, for metrics, outcomes and the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from fairlead.core.ports import Array, Feeds
from fairlead.serve.inference.arms import Arm

__all__ = ["DurableObserver", "Observer", "ServedRequest"]


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


Observer = Callable[[Sequence[ServedRequest]], None]
"""Told of requests some at a time, in the order in which they ended; it must not raise.

No requests at all say that a model is about to go: nothing may refer to it from then on."""


@runtime_checkable
class DurableObserver(Protocol):
    """An observer that answers wait for: what it heard of must survive before they are given."""

    def __call__(self, requests: Sequence[ServedRequest], /) -> None:
        """Hear of some requests."""

    def commit(self, done: Callable[[Exception | None], None], /) -> None:
        """Call back, from any thread, once everything heard so far is safe, or with the reason."""
