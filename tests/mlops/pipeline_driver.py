"""A pipeline that writes down each execution of each step, and can be told how to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from fairlead.core.errors import DataError, GateError
from fairlead.core.plan import StepResult
from fairlead.mlops.pipelines import PipelineConfig, PipelineStep, run_pipeline

STEPS = ("pack", "quantize", "tune")


class KillBetween:
    """Progress that kills the process just before the step of that name begins."""

    def __init__(self, step: str) -> None:
        self._step = step

    def begin(self, title: str, total: int | None = None) -> None:
        pass

    def advance(self, units: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        if text.endswith(f": {self._step}"):
            os.kill(os.getpid(), signal.SIGKILL)


def step_of(name: str, folder: Path, behaviour: Mapping[str, str]) -> PipelineStep:
    def run(before: Mapping[str, StepResult]) -> StepResult:
        with (folder / "executions").open("a") as file:
            file.write(f"{name}\n")
        what = behaviour.get(name, "")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise DataError("the column `age` is missing", hint="add the column")
        if what == "odd":
            raise ZeroDivisionError("division by zero")
        if what == "gate":
            raise GateError("accuracy fell", hint="raise the budget")
        if what == "slow":
            time.sleep(0.05)
        if what == "hang":
            time.sleep(60)
        verdict = "refused" if what == "refuse" else "done"
        return StepResult(
            step=name,
            verdict=verdict,
            summary=f"{name} after {len(before)}",
            bundle=f"/bundles/{name}",
            report={"before": list(before), "drop": float("nan"), "name": "é\n"},
        )

    return PipelineStep(name, run)


def drive(
    folder: str,
    run_id: str = "r1",
    behaviour: Mapping[str, str] | None = None,
    kill_before: str = "",
    database_url: str = "",
) -> None:
    """Run the pipeline; an error ends the process with exit code 1."""
    path = Path(folder)
    run_pipeline(
        run_id,
        [step_of(name, path, behaviour or {}) for name in STEPS],
        PipelineConfig(),
        database_url=database_url or f"sqlite:///{path / 'state.db'}",
        progress=KillBetween(kill_before),
    )


def executions(folder: Path) -> list[str]:
    """Return the steps in the order they were executed, repetitions included."""
    file = folder / "executions"
    return file.read_text().splitlines() if file.exists() else []
