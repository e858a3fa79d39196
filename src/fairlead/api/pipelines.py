"""The runs of plans, as they are stored; `follow` makes and resumes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.api.context import Context
from fairlead.core.plan import PlanRun
from fairlead.core.report import Outcome, Report
from fairlead.mlops import pipelines
from fairlead.mlops.pipelines import PipelineConfig, PipelineStep

__all__ = ["find_plan_run", "list_plan_runs", "report_plan_run", "run_pipeline"]


def list_plan_runs(*, limit: int = 100, context: Context | None = None) -> list[PlanRun]:
    """Return the latest runs, newest first.

    Raises:
        WorkspaceError: The database cannot be read.
    """
    url = (context or Context.open()).workspace.database_url
    return pipelines.list_runs(database_url=url, limit=limit)


def find_plan_run(run_id: str, *, context: Context | None = None) -> PlanRun:
    """Return a stored run.

    Raises:
        NotFoundError: There is no run of that id.
        WorkspaceError: The database cannot be read.
    """
    url = (context or Context.open()).workspace.database_url
    return pipelines.read_run(run_id, database_url=url)


def report_plan_run(run_id: str, *, context: Context | None = None) -> Report:
    """Describe a stored run and its steps.

    Raises:
        NotFoundError: There is no run of that id.
        WorkspaceError: The database cannot be read.
    """
    return pipelines.report_run(find_plan_run(run_id, context=context))


def run_pipeline(
    run_id: str,
    steps: Sequence[PipelineStep],
    *,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[PlanRun]:
    """Run your own steps durably: what has finished is never done twice.

    Args:
        run_id: Name of the run; the same name goes on with the same run.
        steps: In order; each takes the results of the ones before and gives a `StepResult`.
        settings: Keys of `PipelineConfig`, for example `attempts`.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        UsageError: The id or the steps cannot be used.
        ConflictError: Another process works on the same run.
        Exception: What a step raised; the run is then stored as failed.
    """
    ctx = context or Context.open()
    outcome = pipelines.run_pipeline(
        run_id,
        steps,
        PipelineConfig.parse(settings or {}),
        database_url=ctx.workspace.database_url,
        progress=ctx.progress,
    )
    return ctx.record(outcome)
