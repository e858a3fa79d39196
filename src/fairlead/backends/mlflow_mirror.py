"""Copies finished runs to an MLflow tracking server, everything of a run in a few calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fairlead.core.extras import requires
from fairlead.core.report import Finding
from fairlead.core.run import MetricPoint, Run

__all__ = ["mirror_run"]

_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_MAX_VALUE_LETTERS = 5000
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "running": "RUNNING"}


def mirror_run(run: Run, points: Sequence[MetricPoint], tracking_uri: str) -> Finding:
    """Write a run to an MLflow server and say how that went.

    A server that cannot be reached does not undo the run: it is stored in the workspace.

    Args:
        run: The run, ended.
        points: Every value of its metrics.
        tracking_uri: Address of the server, or `sqlite:///…`.

    Raises:
        MissingExtraError: MLflow is not installed.
    """
    with requires("mlflow", needed_by="mirroring runs to MLflow"):
        from mlflow import environment_variables as variables
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    # By default MLflow tries a server that is not there for minutes.
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 1),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", 10),
    ):
        variable: Any = getattr(variables, name)
        if not variable.is_set():
            variable.set(value)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        mlflow_id = _write(MlflowClient(tracking_uri=tracking_uri), run, points)
    except (MlflowException, SQLAlchemyError, OSError) as exc:
        reason = str(exc).splitlines()[0]
        return Finding(
            level="warning",
            text=f"the run was not mirrored to MLflow: {reason}",
            advice="it is stored in the workspace; check MLFLOW_TRACKING_URI",
        )
    return Finding(level="good", text=f"mirrored to MLflow as run {mlflow_id}")


def _write(
    client: Any,  # noqa: ANN401 (an MlflowClient)
    run: Run,
    points: Sequence[MetricPoint],
) -> str:
    from mlflow.entities import Metric, Param, RunTag

    found = client.get_experiment_by_name(run.experiment)
    experiment = found.experiment_id if found else client.create_experiment(run.experiment)
    started_ms = int(run.started_at.timestamp() * 1000)
    made = client.create_run(experiment, start_time=started_ms, run_name=run.name)
    mlflow_id = str(made.info.run_id)
    tags = [RunTag(key, value[:_MAX_VALUE_LETTERS]) for key, value in _tags(run).items()]
    params = [Param(key, value[:_MAX_VALUE_LETTERS]) for key, value in run.params.items()]
    metrics = [Metric(p.name, p.value, int(p.at.timestamp() * 1000), p.step or 0) for p in points]
    client.log_batch(mlflow_id, tags=tags)
    for start in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(mlflow_id, params=params[start : start + _PARAMS_PER_CALL])
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(mlflow_id, metrics=metrics[start : start + _METRICS_PER_CALL])
    ended_ms = int(run.ended_at.timestamp() * 1000) if run.ended_at else None
    client.set_terminated(mlflow_id, status=_STATUS[run.status], end_time=ended_ms)
    return mlflow_id


def _tags(run: Run) -> dict[str, str]:
    tags = {
        "fairlead.run_id": run.id,
        "fairlead.command": " ".join(run.command),
        "fairlead.is_dirty": str(run.code.is_dirty),
        "fairlead.python": run.python,
    }
    if run.code.commit:
        tags["mlflow.source.git.commit"] = run.code.commit
    if run.exit_code is not None:
        tags["fairlead.exit_code"] = str(run.exit_code)
    return tags
