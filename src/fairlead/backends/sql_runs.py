"""Runs of experiments in the state database: one transaction at the start, one at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from fairlead.backends.locks import is_held
from fairlead.backends.sql import Database
from fairlead.backends.sql_schema import RUN_METRICS, RUN_PARAMS, RUNS
from fairlead.core.errors import NotFoundError, UsageError
from fairlead.core.run import MetricPoint, Run

__all__ = ["SqlRunStore", "lock_name"]


def lock_name(run_id: str) -> str:
    """Return the name of the lock that the process which records a run holds."""
    return f"tracked run {run_id}"


class SqlRunStore:
    """Memory of runs; a run whose recording process died is read as `interrupted`."""

    def __init__(self, database_url: str) -> None:
        """Name the database; it is opened, and its tables made, by the first call.

        Raises:
            ConfigError: The URL cannot be read or names an unknown kind of database.
        """
        self._url = database_url
        self._database = Database(database_url)

    def begin(self, run: Run) -> None:
        """Store a run that starts now.

        Raises:
            WorkspaceError: The database cannot be written.
        """
        with self._database.writing() as connection:
            connection.execute(insert(RUNS).values(**_row(run)))

    def finish(self, run: Run, points: Sequence[MetricPoint]) -> None:
        """Store the end of a run, its parameters and every value of its metrics, at once.

        Raises:
            WorkspaceError: The database cannot be written.
        """
        params = [{"run_id": run.id, "name": k, "value": v} for k, v in run.params.items()]
        metrics = [_metric_row(run.id, number, point) for number, point in enumerate(points)]
        with self._database.writing() as connection:
            connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(**_row(run)))
            for table, rows in ((RUN_PARAMS, params), (RUN_METRICS, metrics)):
                connection.execute(delete(table).where(table.c.run_id == run.id))
                if rows:
                    connection.execute(insert(table), rows)

    def read(self, run_id: str) -> Run:
        """Return a run by its id, or by the beginning of it when that is enough to tell.

        Raises:
            NotFoundError: There is no such run.
            UsageError: Several runs begin with these letters.
            WorkspaceError: The database cannot be read.
        """
        with self._database.reading() as connection:
            pattern = run_id.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            found = connection.execute(
                select(RUNS.c.id).where(RUNS.c.id.like(pattern, escape="\\")).limit(10)
            ).scalars()
            ids = list(found)
        if run_id in ids:
            ids = [run_id]
        if not ids:
            raise NotFoundError(
                f"there is no run {run_id!r}", hint="`fairlead mlops track list` shows the runs"
            )
        if len(ids) > 1:
            raise UsageError(
                f"{run_id!r} is the beginning of several runs: {', '.join(sorted(ids)[:5])}",
                hint="write more letters of the id",
            )
        return self._settled(self._read_exactly(ids[0]))

    def latest(
        self, *, experiment: str | None = None, status: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Return runs, the latest first.

        Raises:
            WorkspaceError: The database cannot be read.
        """
        statement = select(RUNS.c.document).order_by(RUNS.c.started_at.desc(), RUNS.c.seq.desc())
        if experiment is not None:
            statement = statement.where(RUNS.c.experiment == experiment)
        if status is not None:
            stored = "running" if status == "interrupted" else status
            statement = statement.where(RUNS.c.status == stored)
        with self._database.reading() as connection:
            documents = connection.execute(statement.limit(limit)).scalars().all()
        runs = [self._settled(Run.model_validate_json(text)) for text in documents]
        return [run for run in runs if status is None or run.status == status]

    def points(self, run_id: str, metric: str | None = None) -> list[MetricPoint]:
        """Return the stored values of a run's metrics in the order they were logged.

        Raises:
            WorkspaceError: The database cannot be read.
        """
        statement = (
            select(RUN_METRICS).where(RUN_METRICS.c.run_id == run_id).order_by(RUN_METRICS.c.seq)
        )
        if metric is not None:
            statement = statement.where(RUN_METRICS.c.name == metric)
        with self._database.reading() as connection:
            rows = connection.execute(statement).mappings().all()
        return [
            MetricPoint(
                name=row["name"],
                value=math.nan if row["value"] is None else row["value"],
                step=row["step"],
                at=datetime.fromisoformat(row["at"]),
            )
            for row in rows
        ]

    def _read_exactly(self, run_id: str) -> Run:
        with self._database.reading() as connection:
            return Run.model_validate_json(_document(connection, run_id))

    def _settled(self, run: Run) -> Run:
        """Tell a run that goes on from one whose process died."""
        if run.status != "running" or is_held(self._url, lock_name(run.id)):
            return run
        # It may have ended between the two looks.
        again = self._read_exactly(run.id)
        return again.model_copy(update={"status": "interrupted"}) if again == run else again


def _document(connection: Connection, run_id: str) -> str:
    return str(connection.execute(select(RUNS.c.document).where(RUNS.c.id == run_id)).scalar_one())


def _row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "experiment": run.experiment,
        "name": run.name,
        "status": run.status,
        "started_at": run.started_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "document": run.model_dump_json(),
    }


def _metric_row(run_id: str, number: int, point: MetricPoint) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "seq": number,
        "name": point.name,
        "value": None if math.isnan(point.value) else point.value,
        "step": point.step,
        "at": point.at.astimezone(UTC).isoformat(timespec="microseconds"),
    }
