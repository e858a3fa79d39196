"""Runs and model versions: record, look up, compare, register, resolve."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle
from fairlead.core.report import Outcome, Report
from fairlead.core.run import ModelVersion, Run
from fairlead.mlops import tracking
from fairlead.mlops.tracking import RunLog, TrackingConfig

if TYPE_CHECKING:
    from fairlead.core.run import MetricPoint

__all__ = [
    "compare_runs",
    "delete_alias",
    "find_run",
    "list_runs",
    "list_versions",
    "read_points",
    "register",
    "report_run",
    "resolve",
    "set_alias",
    "show_version",
    "track",
    "tracked",
]

_Output = Callable[[Literal["stdout", "stderr"], bytes], None]


def track(
    command: Sequence[str],
    *,
    params: Mapping[str, object] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    output: _Output | None = None,
    context: Context | None = None,
) -> Outcome[Run]:
    """Run a command and record everything it was made of.

    Args:
        command: Program and arguments; no shell reads them.
        params: Parameters known at the start.
        inputs: Files whose digests are recorded before the command runs.
        outputs: Files whose digests are recorded after it.
        settings: Keys of `TrackingConfig`, for example `experiment`.
        folder: Working directory; the process's own when None.
        output: Receives what the command writes, as it writes it.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        ConfigError: A setting is unknown or out of range.
        UsageError: There is no command, or it cannot be started.
        NotFoundError: The program or an input does not exist.
        WorkspaceError: The workspace cannot be written.
    """
    ctx = context or Context.open()
    outcome = tracking.track(
        command,
        TrackingConfig.parse(settings or {}),
        workspace=ctx.workspace,
        environ=os.environ,
        folder=folder,
        params=params,
        inputs=inputs,
        outputs=outputs,
        output=output,
        progress=ctx.progress,
    )
    return _mirrored(ctx.record(outcome), ctx)


@contextmanager
def tracked(
    *,
    params: Mapping[str, object] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Iterator[RunLog]:
    """Record the block as one run; inside a tracked command, log to the run of that command.

    So a script works the same alone and under `fairlead mlops track run`:

        with tracked(params={"lr": 0.1}) as run:
            run.log_metric("loss", 0.3, step=1)
            run.log_artifact("model.onnx")

    Args:
        params: Parameters known at the start.
        inputs: Files whose digests are recorded at the start.
        outputs: Files whose digests are recorded at the end.
        settings: Keys of `TrackingConfig`, for example `experiment`.
        context: Workspace; opened from the environment when None.

    Raises:
        ConfigError: A setting is unknown or out of range.
        NotFoundError: An input does not exist.
        WorkspaceError: The workspace cannot be written.
    """
    ctx = context or Context.open()
    config = TrackingConfig.parse(settings or {})
    if ctx.settings.run_file is not None:
        with RunLog(ctx.settings.run_file) as log:
            log.log_params(params or {})
            yield log
        return
    with tracking.recording(
        config,
        workspace=ctx.workspace,
        environ=os.environ,
        folder=Path.cwd(),
        params=params,
        inputs=inputs,
        outputs=outputs,
    ) as active:
        yield active.log
    _mirrored(Outcome(active.run, tracking.report_run(active.run)), ctx)


def _mirrored(outcome: Outcome[Run], ctx: Context) -> Outcome[Run]:
    uri = ctx.settings.mlflow_tracking_uri
    if uri is None:
        return outcome
    from fairlead.backends.mlflow_mirror import mirror_run

    points = tracking.read_points(outcome.noun.id, workspace=ctx.workspace)
    finding = mirror_run(outcome.noun, points, uri)
    report = outcome.report.model_copy(update={"findings": (*outcome.report.findings, finding)})
    return Outcome(outcome.noun, report, outcome.evidence)


def find_run(run_id: str, *, context: Context | None = None) -> Run:
    """Return a run by its id, or by the beginning of it when that is enough to tell.

    Raises:
        NotFoundError: There is no such run.
        UsageError: Several runs begin with these letters.
    """
    return tracking.read_run(run_id, workspace=(context or Context.open()).workspace)


def report_run(run_id: str, *, context: Context | None = None) -> Report:
    """Describe a run.

    Raises:
        NotFoundError: There is no such run.
        UsageError: Several runs begin with these letters.
    """
    return tracking.report_run(find_run(run_id, context=context))


def list_runs(
    *,
    experiment: str | None = None,
    status: str | None = None,
    limit: int = 100,
    context: Context | None = None,
) -> list[Run]:
    """Return runs, the latest first."""
    return tracking.list_runs(
        workspace=(context or Context.open()).workspace,
        experiment=experiment,
        status=status,
        limit=limit,
    )


def read_points(
    run_id: str, *, metric: str | None = None, context: Context | None = None
) -> list[MetricPoint]:
    """Return every value of a run's metrics in the order of logging.

    Raises:
        NotFoundError: There is no such run.
    """
    workspace = (context or Context.open()).workspace
    return tracking.read_points(run_id, workspace=workspace, metric=metric)


def compare_runs(first: str, second: str, *, context: Context | None = None) -> Report:
    """Describe what differs between two runs.

    Raises:
        NotFoundError: There is no such run.
        UsageError: Several runs begin with these letters.
    """
    ctx = context or Context.open()
    return tracking.compare_runs(find_run(first, context=ctx), find_run(second, context=ctx))


def register(
    bundle: str | Path,
    *,
    name: str,
    run: str | None = None,
    alias: str | None = None,
    context: Context | None = None,
) -> Outcome[ModelVersion]:
    """Make a bundle the next version of a registered model; its bytes are copied.

    Args:
        bundle: Folder of the bundle.
        name: Of the registered model.
        run: Id of the run that made it.
        alias: Name that points to this version from now on, for example `champion`.
        context: Workspace; opened from the environment when None.

    Raises:
        NotFoundError: There is no such bundle or run.
        UsageError: The name or the alias cannot be used.
        IntegrityError: The bundle was changed.
        WorkspaceError: The workspace cannot be written.
    """
    ctx = context or Context.open()
    return tracking.register(
        Bundle.open(bundle), name, workspace=ctx.workspace, run_id=run, alias=alias
    )


def resolve(reference: str, *, context: Context | None = None) -> Bundle:
    """Return the stored bundle that `name`, `name@alias` or `name:version` means.

    Raises:
        UsageError: The reference cannot be read.
        NotFoundError: There is no such model, version or alias.
        IntegrityError: The stored bytes were changed.
    """
    return tracking.resolve(reference, workspace=(context or Context.open()).workspace)


def show_version(reference: str, *, context: Context | None = None) -> Outcome[ModelVersion]:
    """Describe a version and what it descends from.

    Raises:
        UsageError: The reference cannot be read.
        NotFoundError: There is no such model, version or alias.
    """
    return tracking.show_version(reference, workspace=(context or Context.open()).workspace)


def list_versions(name: str | None = None, *, context: Context | None = None) -> list[ModelVersion]:
    """Return versions of one model or of all, the latest first.

    Raises:
        NotFoundError: There is no model of that name.
    """
    return tracking.list_versions(name, workspace=(context or Context.open()).workspace)


def set_alias(
    name: str, version: int, alias: str, *, context: Context | None = None
) -> Outcome[ModelVersion]:
    """Point an alias at a version.

    Raises:
        UsageError: The alias cannot be used.
        NotFoundError: There is no such version.
    """
    workspace = (context or Context.open()).workspace
    return tracking.set_alias(name, version, alias, workspace=workspace)


def delete_alias(name: str, alias: str, *, context: Context | None = None) -> Report:
    """Remove an alias; the version stays.

    Raises:
        NotFoundError: There is no such alias.
    """
    return tracking.delete_alias(name, alias, workspace=(context or Context.open()).workspace)
