"""Steps of a plan that need a running server: serve, roll out, scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from fairlead.api.bench import Bench
from fairlead.api.blueprints import ServeStepConfig, check_settings
from fairlead.api.debug_step import debug
from fairlead.api.rollout import roll_out
from fairlead.api.scaling import scale
from fairlead.api.serving_proof import prove_serving
from fairlead.api.step_outcome import StepDone
from fairlead.api.watch_step import watch
from fairlead.core.plan import PlanStep, StepResult
from fairlead.core.report import Finding, Outcome, Report

__all__ = ["LIVE_STEPS"]

Results = Sequence[StepResult]


def _serve(bench: Bench, step: PlanStep, results: Results) -> StepDone:
    config = cast(ServeStepConfig, check_settings(step.uses, step.settings))
    bundle = bench.baseline(results) if bench.rolls_out else bench.newest(results)
    handle = bench.server(bundle)
    report, evidence = prove_serving(
        bundle, handle, bench.data, requests=config.requests, context=bench.context
    )
    bench.context.record(Outcome(bundle, report, evidence))
    return StepDone(report)


def _roll_out(bench: Bench, step: PlanStep, results: Results) -> StepDone:
    baseline, candidate = bench.baseline(results), bench.newest(results)
    if baseline.digest == candidate.digest:
        return StepDone(_nothing_to_roll_out(step))
    bench.close()
    outcome = roll_out(
        baseline.path,
        candidate.path,
        bench.plan.data,
        labels=bench.plan.labels,
        trust=baseline.manifest.needs_trust,
        settings=step.settings,
        context=bench.context,
    )
    if outcome.noun.action == "promote":
        return StepDone(outcome.report, candidate.path)
    if outcome.noun.action == "hold":
        return StepDone(outcome.report.model_copy(update={"verdict": "kept"}), baseline.path)
    return StepDone(outcome.report, baseline.path)


def _nothing_to_roll_out(step: PlanStep) -> Report:
    text = "No earlier step made another version, so the baseline keeps all traffic."
    return Report(
        skill=step.uses,
        title="Roll out",
        summary=text,
        verdict="kept",
        findings=(Finding(level="info", text="there is no candidate to roll out"),),
    )


def _scale(bench: Bench, step: PlanStep, results: Results) -> StepDone:
    bundle = bench.newest(results)
    bench.close()
    outcome = scale(
        bundle.path,
        bench.plan.data,
        labels=bench.plan.labels,
        trust=bundle.manifest.needs_trust,
        settings=step.settings,
        context=bench.context,
    )
    return StepDone(outcome.report)


LIVE_STEPS: Final[dict[str, Callable[[Bench, PlanStep, Any], StepDone]]] = {
    "model-serving-patterns": _serve,
    "deployment-strategies": _roll_out,
    "scaling-and-load-balancing": _scale,
    "production-monitoring-and-alerting": watch,
    "production-debugging-techniques": debug,
}
"""Skill id → how its step runs."""
