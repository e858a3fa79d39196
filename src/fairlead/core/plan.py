"""A route bound to concrete steps: readable, editable, runnable, resumable."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from fairlead.core.values import Value

__all__ = ["Plan", "PlanRun", "PlanStep", "StepResult"]


class PlanStep(Value):
    """One step: which skill or helper verb, with which settings, and what must hold after it."""

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)
    """Unique within the plan."""
    uses: str
    """`pack`, or the id of a skill."""
    why: str
    """The reason, for people."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keys of the skill's config; unknown keys are refused when the plan is read."""
    gate: Literal["stop", "keep"] = "stop"
    """`stop`: a refusal ends the plan with exit 1. `keep`: go on with what came in."""
    gives: str = ""
    """What the step leaves, for people."""


class Plan(Value):
    """Everything `fairlead run` needs."""

    format_number: Literal[1] = 1
    problem: str
    """The user's own words."""
    answers: tuple[str, ...] = ()
    """Answers given to the router's questions."""
    route: tuple[str, ...]
    """Skill ids in execution order."""
    model: str
    data: str
    labels: str | None = None
    steps: tuple[PlanStep, ...]


class StepResult(Value):
    """What a finished step left behind; JSON-able, so that it survives a crash."""

    step: str
    verdict: str
    summary: str
    bundle: str | None = None
    """Path of the bundle that the next step starts from."""
    report: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0


class PlanRun(Value):
    """One run of a plan, finished or not."""

    id: str
    plan_digest: str
    status: str
    """`running`, `done`, `refused`, `failed`, or `interrupted`: its process died in the middle."""
    results: tuple[StepResult, ...] = ()
    title: str = ""
    """What the run is for, for people."""
    n_steps: int = 0
    """Steps of the whole plan; there are as many results when it is done."""
    n_executed: int = 0
    """Steps that this call executed; the others had stored results."""
    attempts: int = 1
    """How often the run was started from a step that had refused or failed, plus one."""
    error: str = ""
    """Why it was refused or failed."""
    hint: str = ""
    """The next step for the reader, when it was refused or failed."""
    started_at: datetime | None = None
    updated_at: datetime | None = None
