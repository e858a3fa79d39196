"""Steps of a plan that work on the model: pack, optimise, record, release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from fairlead.api.bench import Bench
from fairlead.api.blueprints import (
    PackStepConfig,
    RegisterStepConfig,
    ReleaseStepConfig,
    check_settings,
)
from fairlead.api.optimizing import compress, quantize, tune
from fairlead.api.packing import pack
from fairlead.api.releasing import release
from fairlead.api.step_outcome import StepDone
from fairlead.api.tracking import list_runs, register, tracked
from fairlead.core.bundle import Bundle
from fairlead.core.errors import UntrustedError
from fairlead.core.plan import PlanStep, StepResult
from fairlead.core.report import Outcome

__all__ = ["MODEL_STEPS"]

Results = Sequence[StepResult]

_TRUST_HINT = (
    "if you know where it comes from, plan again with --trust, or write `trust = true` under the "
    "settings of the step `pack`"
)


def _pack(bench: Bench, step: PlanStep, _results: Results) -> StepDone:
    config = cast(PackStepConfig, check_settings(step.uses, step.settings))
    try:
        outcome = pack(
            bench.plan.model,
            data=bench.plan.data,
            labels=bench.plan.labels,
            out=bench.out(step.id),
            name=config.name,
            features=config.features,
            trust=config.trust,
            context=bench.context,
        )
    except UntrustedError as exc:
        raise UntrustedError(exc.message, hint=_TRUST_HINT) from exc
    return StepDone(outcome.report, outcome.noun.path)


def _optimise(verb: Callable[..., Outcome[Bundle]]) -> Callable[..., StepDone]:
    def run(bench: Bench, step: PlanStep, results: Results) -> StepDone:
        start = bench.newest(results)
        outcome = verb(
            start.path,
            bench.plan.data,
            labels=bench.plan.labels,
            out=bench.out(step.id),
            trust=start.manifest.needs_trust,
            settings=step.settings,
            context=bench.context,
        )
        is_new = not outcome.is_refused and outcome.noun.digest != start.digest
        return StepDone(outcome.report, outcome.noun.path if is_new else None)

    return run


def _track(bench: Bench, step: PlanStep, results: Results) -> StepDone:
    config = cast(RegisterStepConfig, check_settings(step.uses, step.settings))
    bundle = bench.newest(results)
    inputs = [ref for ref in (bench.plan.model, bench.plan.data) if Path(ref).is_file()]
    with tracked(
        params={"problem": bench.plan.problem, "bundle": bundle.digest, "plan run": bench.run_id},
        inputs=inputs,
        settings={"experiment": config.experiment},
        context=bench.context,
    ) as log:
        log.log_metrics({score.metric: score.value for score in bundle.scores.scores})
    run = list_runs(experiment=config.experiment, limit=1, context=bench.context)[0]
    outcome = register(
        bundle.path, name=bundle.name, run=run.id, alias=config.alias, context=bench.context
    )
    return StepDone(outcome.report)


def _release(bench: Bench, step: PlanStep, results: Results) -> StepDone:
    config = cast(ReleaseStepConfig, check_settings(step.uses, step.settings))
    bundle = bench.newest(results)
    outcome = release(
        bundle.path,
        bench.data,
        name=bundle.name,
        alias=config.alias,
        max_drop=config.max_drop,
        gate=config,
        context=bench.context,
    )
    return StepDone(outcome.report)


MODEL_STEPS: Final[dict[str, Callable[[Bench, PlanStep, Any], StepDone]]] = {
    "pack": _pack,
    "quantization-for-inference": _optimise(quantize),
    "model-compression-techniques": _optimise(compress),
    "hardware-optimization-strategies": _optimise(tune),
    "experiment-tracking-and-versioning": _track,
    "mlops-pipeline-automation": _release,
}
"""Skill id → how its step runs."""
