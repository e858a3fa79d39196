"""The verb of the tracking skill: run a command and record everything it was made of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.errors import UsageError
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.core.run import Run, RunFile
from fairlead.core.units import format_bytes, format_duration_s
from fairlead.core.workspace import Workspace
from fairlead.mlops.tracking.card import CARD
from fairlead.mlops.tracking.config import TrackingConfig
from fairlead.mlops.tracking.recording import recording

if TYPE_CHECKING:
    from fairlead.mlops.tracking.process import Output

__all__ = ["report_run", "track"]


def track(
    command: Sequence[str],
    config: TrackingConfig,
    *,
    workspace: Workspace,
    environ: Mapping[str, str],
    folder: Path | None = None,
    params: Mapping[str, object] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    output: Output | None = None,
    progress: Progress | None = None,
) -> Outcome[Run]:
    """Run a command and record code, environment, files, parameters, metrics and its end.

    The command finds the path of its log in `FAIRLEAD_RUN_FILE` and the id of the run in
    `FAIRLEAD_RUN_ID`; it may append parameters, metrics and artifacts to the log as JSON lines.

    Args:
        command: Program and arguments; no shell reads them.
        config: What is captured, and how much of it.
        workspace: Where it is stored.
        environ: The environment of the process; the command gets it whole.
        folder: Working directory; the process's own when None.
        params: Parameters known at the start.
        inputs: Files whose digests are recorded before the command runs.
        outputs: Files whose digests are recorded after it.
        output: Receives what the command writes, as it writes it.
        progress: Hears what happens.

    Returns:
        The run; the verdict is `refused` when the command failed.

    Raises:
        UsageError: There is no command, or it cannot be started.
        NotFoundError: The program or an input does not exist.
        WorkspaceError: The workspace cannot be written.
    """
    from fairlead.mlops.tracking.process import run_command

    if not command:
        raise UsageError("there is no command to run", hint="write it after `--`")
    place = (folder or Path.cwd()).resolve()
    with recording(
        config,
        workspace=workspace,
        environ=environ,
        folder=place,
        command=command,
        params=params,
        inputs=inputs,
        outputs=outputs,
    ) as active:
        (progress or SilentProgress()).note(
            f"run {active.run.id}: {shlex.join(active.run.command)}"
        )
        finished = run_command(
            command,
            folder=place,
            environ={
                **environ,
                "FAIRLEAD_RUN_FILE": str(active.log_file),
                "FAIRLEAD_RUN_ID": active.run.id,
            },
            tail_bytes=config.tail_kb * 1000,
            output=output,
        )
        active.end(
            status="done" if finished.exit_code == 0 else "failed",
            exit_code=finished.exit_code,
            stdout_tail=finished.stdout_tail,
            stderr_tail=finished.stderr_tail,
        )
    if finished.is_interrupted:
        raise KeyboardInterrupt
    return Outcome(active.run, report_run(active.run), _evidence(active.run))


def _evidence(run: Run) -> tuple[Evidence, ...]:
    labels = {"experiment": run.experiment, "commit": run.code.commit or ""}
    measured = (
        ("duration_s", run.duration_s, "s", "wall clock around the command"),
        ("exit_code", run.exit_code, "count", "exit status of the command"),
    )
    return tuple(
        Evidence(
            metric=metric,
            value=float(value),
            unit=unit,
            method=method,
            subject=f"run:{run.id}",
            sample_size=1,
            skill=CARD.id,
            labels=labels,
        )
        for metric, value, unit, method in measured
        if value is not None
    )


def report_run(run: Run) -> Report:
    """Describe a run, finished or not."""
    measures = [Measure(name=name, value=value) for name, value in sorted(run.metrics.items())]
    if run.duration_s is not None:
        measures.insert(0, Measure(name="duration", value=run.duration_s, unit="s"))
    facts: tuple[tuple[str, str], ...] = (
        ("experiment", run.experiment),
        ("status", run.status),
        ("started", run.started_at.isoformat(timespec="seconds")),
        ("command", shlex.join(run.command)),
        ("commit", _commit(run)),
        ("python", f"{run.python}, {len(run.packages)} packages"),
        ("host", run.host),
    )
    tables = [Table(title="Run", columns=("what", "value"), rows=facts)]
    if run.params:
        rows = tuple(sorted(run.params.items()))
        tables.append(Table(title="Parameters", columns=("name", "value"), rows=rows))
    files = [*run.files, *run.code.untracked, *([run.code.diff] if run.code.diff else [])]
    if files:
        tables.append(_files(files))
    return Report(
        skill=CARD.id,
        title=f"Run {run.name}",
        summary=_summary(run),
        verdict="refused" if run.status == "failed" else "done",
        measures=tuple(measures),
        findings=_findings(run),
        tables=tuple(tables),
        details=run.model_dump(mode="json"),
    )


def _summary(run: Run) -> str:
    if run.status == "running":
        return f"Run {run.id} is still going."
    if run.status == "interrupted":
        return f"Run {run.id} was interrupted: the process that recorded it died."
    took = format_duration_s(run.duration_s or 0.0)
    if run.status == "failed" and run.exit_code is not None:
        ended = f"signal {-run.exit_code}" if run.exit_code < 0 else f"exit code {run.exit_code}"
        return f"Run {run.id} failed with {ended} after {took}."
    if run.status == "failed":
        return f"Run {run.id} failed after {took}: {run.stderr_tail.splitlines()[-1:]}"
    return f"Run {run.id} is done after {took}."


def _commit(run: Run) -> str:
    if not run.code.root:
        return "not in a git repository"
    state = "with uncommitted changes" if run.code.is_dirty else "clean"
    return f"{(run.code.commit or 'no commit yet')[:12]} ({state})"


def _findings(run: Run) -> tuple[Finding, ...]:
    found = [Finding(level="warning", text=note) for note in run.notes]
    if run.status == "failed" and run.stderr_tail.strip():
        last = run.stderr_tail.strip().splitlines()[-1]
        found.append(Finding(level="alert", text=f"the last words of the command: {last}"))
    return tuple(found)


def _files(files: Sequence[RunFile]) -> Table:
    return Table(
        title="Files",
        columns=("role", "path", "size", "digest", "content stored"),
        rows=tuple(
            (f.role, f.path, format_bytes(f.size_bytes), f.digest[:19], f.is_stored) for f in files
        ),
    )
