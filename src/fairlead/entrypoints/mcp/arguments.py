"""What the tools of the front door take; the docstrings become the schemas' descriptions."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fairlead.core.plan import Plan

__all__ = [
    "AnswerArguments",
    "Arguments",
    "AskArguments",
    "PlanArguments",
    "RunArguments",
    "RunPipelineArguments",
]


class Arguments(BaseModel):
    """The base of every tool's arguments: what is not known is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AskArguments(Arguments):
    """A problem, and what may be measured to settle it."""

    text: str = Field(max_length=100_000)
    """The problem in the user's own words."""
    model: str | None = None
    """Path of the model or bundle whose measurements may settle a question."""
    data: str | None = None
    """Path of rows to measure on: Parquet, CSV, JSONL or npz."""
    labels: str | None = None
    """Column of the labels in the rows."""
    url: str | None = None
    """URL or name of the running service that the problem is about."""
    slo_ms: float | None = Field(None, gt=0)
    """Longest time that a request may take, in ms."""
    trust: bool = False
    """Whether code that came with the model may run while it is measured."""
    measure: bool = False
    """Whether a measurement that is missing is taken, instead of asking the user."""


class AnswerArguments(Arguments):
    """The answer to the question that `ask` gave."""

    option: str
    """Id, number or label of an option, or the user's own words."""
    dialogue: str | None = None
    """The `dialogue` that came with the question; the last one when left out."""


class PlanArguments(Arguments):
    """A problem that is clear enough to be bound to steps."""

    text: str = Field(max_length=100_000)
    """The problem in the user's own words."""
    model: str
    """Path of the model: ONNX, skops, XGBoost, LightGBM, torch export, MLflow model or bundle."""
    data: str
    """Path of held-back rows: Parquet, CSV, JSONL or npz."""
    labels: str | None = None
    """Column of the labels; without it quality is agreement with the original model."""
    answers: tuple[str, ...] = ()
    """Answers to the router's questions, in order."""
    stream: str | None = None
    """Path of rows that the monitoring step sends and watches."""
    name: str | None = None
    """Name of the model and the service; from the file's name when left out."""
    features: tuple[str, ...] = ()
    """Columns of the model's single input, in order; found when left out."""
    trust: bool = False
    """Whether code and pickles that came with the model may run."""
    output: str = "plan.toml"
    """Path of the plan to write."""


class RunArguments(Arguments):
    """A plan on disk."""

    path: str = "plan.toml"
    """Path of the plan."""
    fresh: bool = False
    """Whether to start again although a run of this plan exists."""


class RunPipelineArguments(Arguments):
    """A plan given in place."""

    plan: Plan
    """The plan, as the tool `plan` returns it."""
    fresh: bool = False
    """Whether to start again although a run of this plan exists."""
