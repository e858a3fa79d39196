"""Steps of a plan that work on the model: pack, optimise, record, release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from fairlead.api.step_outcome import StepDone
from fairlead.core.bundle import Bundle
from fairlead.core.plan import PlanStep, StepResult
from fairlead.core.report import Outcome

__all__ = ["MODEL_STEPS"]

Results = Sequence[StepResult]


def _pack(bench: Bench, step: PlanStep, results: Results) -> StepDone:
    config = cast(PackStepConfig, check_settings(step.uses, step.settings))
    outcome = pack(
        bench.plan.model,
        data=bench.plan.data,
        labels=bench.plan.labels,
        out=bench.out(step.id),
        name=config.name,
        trust=config.trust,
        context=bench.context,
    )
    return StepDone(outcome.report, outcome.noun.path)


def _optimise(verb: Callable[..., Outcome[Bundle]]) -> Callable[..., StepDone]:
    def run(bench: Bench, step: PlanStep, results: Results) -> StepDone:
        start = bench.newest(results)
        outcome = verb(
            start.path,
            bench.plan.data,
            labels=bench.plan.labels,
            out=bench.out(step.id),
            settings=step.settings,
            context=bench.context,
        )
        is_new = not outcome.is_refused and outcome.noun.digest != start.digest
        return StepDone(outcome.report, outcome.noun.path if is_new else None)

    return run


MODEL_STEPS: Final[dict[str, Callable[[Bench, PlanStep, Any], StepDone]]] = {
    "pack": _pack,
    "quantization-for-inference": _optimise(quantize),
    "model-compression-techniques": _optimise(compress),
    "hardware-optimization-strategies": _optimise(tune),
}
"""Skill id → how its step runs."""
