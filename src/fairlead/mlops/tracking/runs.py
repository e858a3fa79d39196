"""Runs that were recorded, and what those logged that were interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.core.run import MetricPoint, Run
from fairlead.core.workspace import Workspace
from fairlead.mlops.tracking.log import read_log
from fairlead.mlops.tracking.recording import log_path

if TYPE_CHECKING:
    from fairlead.backends.sql_runs import SqlRunStore

__all__ = ["list_runs", "read_points", "read_run"]

_UNFINISHED = {"running", "interrupted"}


def _open(workspace: Workspace) -> SqlRunStore:
    from fairlead.backends.sql_runs import SqlRunStore

    return SqlRunStore(workspace.database_url)


def read_run(run_id: str, *, workspace: Workspace) -> Run:
    """Return a run by its id, or by the beginning of it when that is enough to tell.

    Raises:
        NotFoundError: There is no such run.
        UsageError: Several runs begin with these letters.
        WorkspaceError: The database cannot be read.
    """
    return _with_log(_open(workspace).read(run_id), workspace)


def list_runs(
    *,
    workspace: Workspace,
    experiment: str | None = None,
    status: str | None = None,
    limit: int = 100,
) -> list[Run]:
    """Return runs, the latest first.

    Raises:
        WorkspaceError: The database cannot be read.
    """
    found = _open(workspace).latest(experiment=experiment, status=status, limit=limit)
    return [_with_log(run, workspace) for run in found]


def read_points(
    run_id: str, *, workspace: Workspace, metric: str | None = None
) -> list[MetricPoint]:
    """Return every value of a run's metrics, or of one of them, in the order of logging.

    Raises:
        NotFoundError: There is no such run.
        WorkspaceError: The database cannot be read.
    """
    run = read_run(run_id, workspace=workspace)
    if run.status in _UNFINISHED:
        points = read_log(log_path(workspace, run.id)).points
        return [point for point in points if metric in (None, point.name)]
    return _open(workspace).points(run.id, metric)


def _with_log(run: Run, workspace: Workspace) -> Run:
    """Add what a run logged that has not ended, or never will."""
    if run.status not in _UNFINISHED:
        return run
    logged = read_log(log_path(workspace, run.id))
    update = {"params": logged.params, "metrics": logged.metrics}
    return run.model_copy(update=update)
