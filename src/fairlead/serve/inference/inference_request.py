"""What a transport understood of a request, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fairlead.core.ports import Array, Feeds
from fairlead.serve.inference.arms import Arm

__all__ = ["Answer", "InferenceRequest", "Joined"]


class InferenceRequest(NamedTuple):
    """What a transport understood of a request.

    Attributes:
        feeds: One array per input, first dimension the rows.
        arrived: When it arrived, in seconds of `time.perf_counter`.
        id: The client's id, or "" to be given one.
        version: The version the client insists on, or None.
        trace_id: Id of the distributed trace it belongs to, or "".
        is_probe: Whether it only tests the server; it is measured but not remembered.
        deadline: When nobody waits for the answer any more, in seconds of `time.perf_counter`;
            None leaves it to the server's own timeout. A request whose time is up never runs.
        priority: 1 is served before others, 0 is normal, -1 after others and refused first.
        caller: Who asks, as the guard knows them, or "".
        outputs: The outputs that are wanted, or None for all.
        parameters: Parameters of the protocol that the transport did not use up.
    """

    feeds: Feeds
    arrived: float
    id: str = ""
    version: str | None = None
    trace_id: str = ""
    is_probe: bool = False
    deadline: float | None = None
    priority: int = 0
    caller: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: Mapping[str, Any] = MappingProxyType({})


class Joined(NamedTuple):
    """Validated requests to one arm, put below one another; one value per request in every list.

    Attributes:
        ids: The clients' ids, or "" to be given one.
        arrived: When each arrived, in seconds of `time.perf_counter`, the oldest first.
        n_rows: Rows of each.
        trace_ids: Ids of the distributed traces they belong to, or "".
        callers: Who asks, as the guard knows them, or "".
        feeds: The tensors of all of them, as the model takes them.
    """

    ids: list[str]
    arrived: list[float]
    n_rows: list[int]
    trace_ids: list[str]
    callers: list[str]
    feeds: dict[str, Array]


class Answer(NamedTuple):
    """What a transport sends back.

    Attributes:
        id: Id of the request.
        arm: The arm that answered.
        outputs: Name → array, first dimension the rows.
        is_cached: Whether it was given before, and nothing ran.
        parts_ms: Step → time it ran for the whole batch, in ms, of models that tell; or None.
    """

    id: str
    arm: Arm
    outputs: dict[str, Array]
    is_cached: bool = False
    parts_ms: Mapping[str, float] | None = None

    @property
    def told(self) -> dict[str, str | float] | None:
        """What an answer says beside its outputs: the times of steps, or that nothing ran."""
        if self.is_cached:
            return {"fairlead-cache": "hit"}
        return self.told_of(self.parts_ms)

    @staticmethod
    def told_of(parts_ms: Mapping[str, float] | None) -> dict[str, str | float] | None:
        """Return what an answer says of the times of steps."""
        if not parts_ms:
            return None
        return {f"step_ms.{step}": round(run_ms, 4) for step, run_ms in parts_ms.items()}
