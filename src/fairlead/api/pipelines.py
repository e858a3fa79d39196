"""The runs of plans, as they are stored; `follow` makes and resumes them."""

from __future__ import annotations

from fairlead.api.context import Context
from fairlead.core.plan import PlanRun
from fairlead.core.report import Report
from fairlead.mlops import pipelines

__all__ = ["find_plan_run", "list_plan_runs", "report_plan_run"]


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
