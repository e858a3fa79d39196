"""The verb of the pipelines skill: run steps so that finished ones are never done twice."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import NotFoundError, UsageError
from fairlead.core.evidence import Evidence
from fairlead.core.files import digest_bytes
from fairlead.core.plan import PlanRun, StepResult
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.mlops.pipelines.card import CARD
from fairlead.mlops.pipelines.config import PipelineConfig
from fairlead.mlops.pipelines.methods import METHODS
from fairlead.mlops.pipelines.methods.durable_execution import Execution
from fairlead.mlops.pipelines.step import PipelineStep

if TYPE_CHECKING:
    from fairlead.backends.dbos import DurableRuns, StoredRun

__all__ = ["list_runs", "read_run", "report_run", "run_pipeline"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_pipeline(
    run_id: str,
    steps: Sequence[PipelineStep],
    config: PipelineConfig,
    *,
    database_url: str,
    progress: Progress | None = None,
    title: str = "",
    plan_digest: str = "",
) -> Outcome[PlanRun]:
    """Run steps in order; a run that was stopped goes on where it stopped.

    Every result is stored before the next step begins. Running the same id again executes nothing
    when the run is done, resumes it when its process died, and starts with the step that refused
    or failed otherwise; finished steps are kept. Steps run in the calling thread.

    Args:
        run_id: Letters, digits, `.`, `_` and `-`; results are stored under it.
        steps: In order; ids are unique.
        config: Method, attempts and pauses.
        database_url: SQLAlchemy URL of the state database.
        progress: Hears which step runs.
        title: What the run is for.
        plan_digest: Digest of the plan; the digest of the step ids when empty.

    Returns:
        The run: `done`, or `refused` when a step said no.

    Raises:
        UsageError: The id or the steps cannot be used.
        ConflictError: Another process works on the same run.
        WorkspaceError: The database cannot be read or written.
        Exception: What a step raised; the run is then stored as `failed`.
    """
    _check(run_id, steps)
    ids = "\n".join(step.id for step in steps)
    header = {
        "title": title,
        "digest": plan_digest or digest_bytes(ids.encode()),
        "n_steps": len(steps),
    }
    runs = _open(database_url)
    execution = METHODS[config.method](
        runs, run_id, steps, config, header=header, progress=progress or SilentProgress()
    )
    if execution.error is not None:
        raise execution.error
    run = _plan_run(execution.stored).model_copy(
        update={
            "plan_digest": header["digest"],
            "n_steps": len(steps),
            "n_executed": len(execution.executed),
        }
    )
    return Outcome(run, report_run(run, executed=execution.executed), _evidence(run, execution))


def read_run(run_id: str, *, database_url: str) -> PlanRun:
    """Return a stored run.

    Raises:
        NotFoundError: There is no run of that id.
        WorkspaceError: The database cannot be read.
    """
    stored = _open(database_url).read(run_id)
    if stored is None:
        raise NotFoundError(
            f"there is no pipeline run {run_id}",
            hint="`fairlead mlops pipeline list` shows the runs there are",
        )
    return _plan_run(stored)


def list_runs(*, database_url: str, limit: int = 100) -> list[PlanRun]:
    """Return the latest runs, newest first.

    Raises:
        WorkspaceError: The database cannot be read.
    """
    return [_plan_run(stored) for stored in _open(database_url).latest(limit)]


def _open(database_url: str) -> DurableRuns:
    # The database library loads with the first run, not with the catalogue of skills.
    from fairlead.backends.dbos import DurableRuns

    return DurableRuns(database_url)


def _check(run_id: str, steps: Sequence[PipelineStep]) -> None:
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"the run id {run_id!r} cannot be used",
            hint="use up to 100 letters, digits, dots, underscores and dashes",
        )
    ids = [step.id for step in steps]
    if not ids:
        raise UsageError("the pipeline has no steps", hint="give at least one step")
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UsageError(
            f"the pipeline has two steps named `{twice[0]}`", hint="give each step its own id"
        )


def _plan_run(stored: StoredRun) -> PlanRun:
    last: Mapping[str, Any] = stored.records[-1] if stored.records else {}
    stopped = last.get("state") if last.get("state") != "done" else None
    if stored.is_active and not stopped:
        status = "running" if stored.is_held else "interrupted"
    else:
        status = str(stopped or "done")
    return PlanRun(
        id=stored.id,
        plan_digest=str(stored.header.get("digest", "")),
        status=status,
        results=tuple(StepResult.model_validate(item["result"]) for item in stored.records),
        title=str(stored.header.get("title", "")),
        n_steps=int(stored.header.get("n_steps", 0)),
        attempts=stored.attempts,
        error=str(last.get("error", "")),
        hint=str(last.get("hint", "")),
        started_at=datetime.fromtimestamp(stored.started_at_ms / 1000, UTC),
        updated_at=datetime.fromtimestamp(stored.updated_at_ms / 1000, UTC),
    )


def report_run(run: PlanRun, *, executed: Collection[str] = ()) -> Report:
    """Describe a run of a plan, finished or not.

    Args:
        run: The run.
        executed: Ids of the steps that were executed just now; the others were stored before.
    """
    rows = tuple(
        (
            result.step,
            result.verdict,
            round(result.seconds, 3),
            "now" if result.step in executed else "before",
            result.summary,
        )
        for result in run.results
    )
    columns = ("step", "verdict", "seconds", "executed", "summary")
    findings = []
    if executed and len(run.results) > len(executed):
        n_kept = len(run.results) - len(executed)
        text = f"{n_kept} steps were finished before and not run again"
        findings.append(Finding(level="info", text=text))
    if run.error:
        findings.append(Finding(level="alert", text=run.error, advice=run.hint))
    return Report(
        skill=CARD.id,
        title=run.title or f"Run {run.id}",
        summary=_summary(run),
        verdict="refused" if run.status == "refused" else "done",
        measures=(
            Measure(name="steps finished", value=_n_done(run), unit="count"),
            Measure(name="steps of the plan", value=run.n_steps, unit="count"),
            Measure(name="time in steps", value=sum(r.seconds for r in run.results), unit="s"),
        ),
        findings=tuple(findings),
        tables=(Table(title="Steps", columns=columns, rows=rows),),
        details=run.model_dump(mode="json"),
    )


def _n_done(run: PlanRun) -> int:
    return len(run.results) - (run.status in {"refused", "failed"})


def _summary(run: PlanRun) -> str:
    if run.status in {"refused", "failed"}:
        verb = "Stopped" if run.status == "refused" else "Failed"
        return f"{verb} after {_n_done(run)} of {run.n_steps} steps: {run.error}"
    if run.status == "interrupted":
        return (
            f"Interrupted after {_n_done(run)} of {run.n_steps} steps: the process died. "
            "Run the plan again to go on."
        )
    if run.status == "running":
        return f"Running: {_n_done(run)} of {run.n_steps} steps are done."
    if run.n_executed == 0:
        return f"All {run.n_steps} steps are done; none had to be executed."
    return f"{run.n_steps} steps are done; {run.n_executed} of them were executed now."


def _evidence(run: PlanRun, execution: Execution) -> tuple[Evidence, ...]:
    executed = set(execution.executed)
    return tuple(
        Evidence(
            metric="step_duration_s",
            value=result.seconds,
            unit="s",
            method="wall clock around the step",
            subject=run.plan_digest,
            sample_size=1,
            skill=CARD.id,
            labels={"run": run.id, "step": result.step, "verdict": result.verdict},
        )
        for result in run.results
        if result.step in executed
    )
