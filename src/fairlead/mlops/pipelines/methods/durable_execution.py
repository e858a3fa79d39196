"""Durable execution: the result of each step is stored before the next one begins.

The method is the one of workflow systems such as Temporal and DBOS: after a crash the workflow is
replayed from its beginning, and a step whose result is stored returns it instead of running.
A step that was running when the process died runs again, so each step is executed at least once
and, once its result is stored, never again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairlead.core.errors import (
    BundleError,
    DataError,
    FairleadError,
    MissingExtraError,
    ModelError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from fairlead.core.plan import StepResult
from fairlead.core.ports import Progress
from fairlead.mlops.pipelines.config import PipelineConfig
from fairlead.mlops.pipelines.step import PipelineStep

if TYPE_CHECKING:
    from fairlead.backends.dbos import DurableRuns, Record, StoredRun

__all__ = ["Execution", "execute_durably"]

_LASTING = (
    UsageError,
    ModelError,
    DataError,
    BundleError,
    NotFoundError,
    MissingExtraError,
    RefusedError,
)
"""Errors that a second attempt cannot mend."""


@dataclass
class Execution:
    """What one call of the executor did.

    Attributes:
        stored: The run as it is stored now.
        executed: Ids of the steps that this call executed to their end.
        error: What a step raised, when the run failed in this call.
    """

    stored: StoredRun
    executed: tuple[str, ...]
    error: Exception | None


@dataclass
class _Session:
    """One call: it knows the steps, counts attempts, and keeps the error as it was raised."""

    config: PipelineConfig
    progress: Progress
    n_steps: int
    executed: list[str] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None

    def perform(self, step: PipelineStep, before: Sequence[Record]) -> Record:
        """Run one step; raises only when it is to be tried again."""
        tries = self.tries[step.id] = self.tries.get(step.id, 0) + 1
        again = f" (attempt {tries})" if tries > 1 else ""
        self.progress.note(f"step {len(before) + 1} of {self.n_steps}: {step.id}{again}")
        results = {item["step"]: StepResult.model_validate(item["result"]) for item in before}
        began = time.perf_counter()
        try:
            result = step.run(results)
        except RefusedError as exc:
            return self._stopped("refused", step, exc, time.perf_counter() - began)
        except Exception as exc:
            is_last = tries >= self.config.attempts or isinstance(exc, _LASTING)
            if not is_last:
                raise
            self.error = exc
            return self._stopped("failed", step, exc, time.perf_counter() - began)
        self.executed.append(step.id)
        seconds = result.seconds or time.perf_counter() - began
        return _record(step, result.model_copy(update={"step": step.id, "seconds": seconds}))

    def _stopped(self, state: str, step: PipelineStep, exc: Exception, seconds: float) -> Record:
        self.executed.append(step.id)
        is_ours = isinstance(exc, FairleadError)
        message = exc.message if isinstance(exc, FairleadError) else f"{type(exc).__name__}: {exc}"
        hint = exc.hint if isinstance(exc, FairleadError) else "run the same command again"
        result = StepResult(step=step.id, verdict=state, summary=message, seconds=seconds)
        return {
            "state": state,
            "result": result.model_dump(mode="json"),
            "error": message,
            "hint": hint,
            "code": type(exc).code if is_ours and isinstance(exc, FairleadError) else "",
        }


def _record(step: PipelineStep, result: StepResult) -> Record:
    is_stop = result.verdict == "refused" and step.gate == "stop"
    record: Record = {
        "state": "refused" if is_stop else "done",
        "result": result.model_dump(mode="json"),
    }
    if is_stop:
        record["error"] = f"step {step.id} was refused: {result.summary}"
        record["hint"] = "change what the step reports, then run the same command again"
    return record


def execute_durably(
    runs: DurableRuns,
    run_id: str,
    steps: Sequence[PipelineStep],
    config: PipelineConfig,
    *,
    header: Mapping[str, object],
    progress: Progress,
) -> Execution:
    """Run the steps that have no stored result, and store each result before the next step.

    Args:
        runs: Where results are stored.
        run_id: The run; results stored under it are not made again.
        steps: In order.
        config: Attempts and pauses.
        header: What is stored with the run: title, digest, number of steps.
        progress: Hears which step runs.

    Raises:
        ConflictError: Another process works on the run.
        WorkspaceError: The database cannot be read or written.
    """
    from fairlead.backends.dbos import DurableStep

    session = _Session(config, progress, len(steps))
    durable = [
        DurableStep(
            id=step.id,
            fingerprint=step.fingerprint,
            run=lambda before, step=step: session.perform(step, before),  # type: ignore[misc]
            attempts=config.attempts,
            backoff_s=config.backoff_s,
        )
        for step in steps
    ]
    with runs.owned(run_id):
        stored = runs.execute(run_id, durable, header=header)
    return Execution(stored, tuple(session.executed), session.error)
