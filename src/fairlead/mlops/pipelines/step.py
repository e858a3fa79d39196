"""What a pipeline is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fairlead.core.plan import StepResult

__all__ = ["PipelineStep"]


@dataclass(frozen=True)
class PipelineStep:
    """One step of a pipeline.

    Attributes:
        id: Name, unique within the pipeline.
        run: Does the work; receives the results of the finished steps by id, in their order.
        gate: `stop`: a result with verdict `refused` ends the run. `keep`: the run goes on.
        fingerprint: Digest of what the step depends on, its settings for example. When it changes,
            the stored result no longer counts and the step, with all after it, runs again.
    """

    id: str
    run: Callable[[Mapping[str, StepResult]], StepResult]
    gate: Literal["stop", "keep"] = "stop"
    fingerprint: str = ""
