"""Runs a plan: every step once, whatever happens to the process in between."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairlead.api.bench import Bench
from fairlead.api.blueprints import check_settings
from fairlead.api.context import Context
from fairlead.api.live_steps import LIVE_STEPS
from fairlead.api.model_steps import MODEL_STEPS
from fairlead.api.plan_file import plan_digest
from fairlead.core.artifact import Artifact
from fairlead.core.errors import PlanError
from fairlead.core.files import digest_bytes, digest_file
from fairlead.core.plan import Plan, PlanRun, PlanStep, StepResult
from fairlead.core.report import Outcome, Report
from fairlead.mlops.pipelines import PipelineConfig, PipelineStep, list_runs, run_pipeline

__all__ = ["follow", "where_it_stopped"]

_STEPS = {**MODEL_STEPS, **LIVE_STEPS}
_MEASURES_PER_STEP = 3


def follow(plan: Plan, *, fresh: bool = False, context: Context | None = None) -> Outcome[PlanRun]:
    """Run a plan, or go on with a run of it that was stopped.

    The same plan on the same model and rows is the same run: finished steps are not repeated, a
    step whose settings were edited runs again with all that follow it.

    Args:
        plan: The plan.
        fresh: Start a new run even when there is one.
        context: Workspace and progress; opened from the environment when None.

    Returns:
        The run; its report is refused when a gate stopped it.

    Raises:
        PlanError: A step is unknown, used twice, or stands before what it needs.
        ConflictError: Another process runs this plan.
        FairleadError: A step failed; running the plan again goes on with that step.
    """
    ctx = context or Context.open()
    _check(plan)
    identity = _identity(plan)
    run_id = _run_id(identity, ctx, fresh=fresh)
    bench = Bench(plan, run_id, ctx)
    steps = [_bind(bench, step, identity) for step in plan.steps]
    try:
        outcome = run_pipeline(
            run_id,
            steps,
            PipelineConfig(),
            database_url=ctx.workspace.database_url,
            progress=ctx.progress,
            title=plan.problem,
            plan_digest=plan_digest(plan),
        )
    finally:
        bench.close()
    ctx.record(outcome)
    return Outcome(outcome.noun, _summarise(plan, outcome.noun, outcome.report), outcome.evidence)


def where_it_stopped(plan: Plan, context: Context) -> str:
    """Say which step of a plan was under way when its run was stopped, and what is kept.

    Args:
        plan: The plan that was followed.
        context: The workspace of the run.
    """
    base = _base(_identity(plan))
    run = next(iter(_runs_of(base, context)), None)
    n_kept = 0 if run is None else len(run.results)
    if n_kept >= len(plan.steps):
        return "stopped after the last step; every step is finished and kept"
    kept = f"{n_kept} finished before it, kept" if n_kept else "nothing was finished before it"
    return f"stopped in step {n_kept + 1} of {len(plan.steps)}, {plan.steps[n_kept].id}: {kept}"


def _check(plan: Plan) -> None:
    if plan.steps[0].uses != "pack":
        raise PlanError(
            f"the plan begins with `{plan.steps[0].uses}`, but every step needs a bundle",
            hint='let the first step be `uses = "pack"`',
        )
    ids = [step.id for step in plan.steps]
    for step in plan.steps:
        check_settings(step.uses, step.settings)
        if ids.count(step.id) > 1:
            raise PlanError(f"two steps are named `{step.id}`", hint="give every step its own `id`")


def _identity(plan: Plan) -> str:
    """Digest of what a run works on; editing the settings of a step keeps the run."""
    path = Path(plan.data)
    rows = digest_file(path) if path.is_file() else plan.data
    parts = [plan.problem, Artifact.from_reference(plan.model).digest, rows, plan.labels]
    return digest_bytes(json.dumps(parts).encode())


def _run_id(identity: str, context: Context, *, fresh: bool) -> str:
    base = _base(identity)
    mine = _runs_of(base, context)
    if not mine:
        return base
    return f"{base}-{len(mine) + 1}" if fresh else mine[0].id


def _base(identity: str) -> str:
    return identity.removeprefix("sha256:")[:12]


def _runs_of(base: str, context: Context) -> list[PlanRun]:
    """Return the runs of a plan, the newest first."""
    known = list_runs(database_url=context.workspace.database_url, limit=10_000)
    return [run for run in known if run.id == base or run.id.startswith(f"{base}-")]


def _bind(bench: Bench, step: PlanStep, identity: str) -> PipelineStep:
    def run(results: Mapping[str, StepResult]) -> StepResult:
        started = time.perf_counter()
        done = _STEPS[step.uses](bench, step, list(results.values()))
        return StepResult(
            step=step.id,
            verdict=done.report.verdict,
            summary=done.report.summary,
            bundle=None if done.bundle is None else str(done.bundle),
            report=done.report.model_dump(mode="json"),
            seconds=time.perf_counter() - started,
        )

    settings: dict[str, Any] = {"uses": step.uses, "settings": step.settings, "gate": step.gate}
    mark = digest_bytes(json.dumps([identity, settings], sort_keys=True, default=str).encode())
    return PipelineStep(step.id, run, gate=step.gate, fingerprint=mark)


def _summarise(plan: Plan, run: PlanRun, report: Report) -> Report:
    parts = [Report.model_validate(result.report) for result in run.results]
    measures = tuple(
        measure.model_copy(update={"name": f"{result.step}: {measure.name}"})
        for result, part in zip(run.results, parts, strict=True)
        for measure in part.measures[:_MEASURES_PER_STEP]
    )
    findings = tuple(item for part in parts for item in part.findings if item.level != "info")
    # A step's own bundle is not the one to serve when a later step decides otherwise.
    files = {role: path for part in parts for role, path in part.files.items() if role != "bundle"}
    bundles = [result.bundle for result in run.results if result.bundle is not None]
    if bundles and run.status == "done":
        files["bundle to serve"] = bundles[-1]
    return report.model_copy(
        update={
            "title": plan.problem,
            "measures": measures,
            "findings": (*report.findings, *findings),
            "files": {**files, **report.files},
        }
    )
