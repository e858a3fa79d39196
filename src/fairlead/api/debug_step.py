"""The step of a plan that looks for causes: where requests spend their time, where errors sit."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.api.bench import Bench
from fairlead.api.observing import diagnose
from fairlead.api.step_outcome import StepDone
from fairlead.core.plan import PlanStep, StepResult
from fairlead.core.report import Finding, Report

__all__ = ["debug"]

_PROBES = 50


def debug(bench: Bench, step: PlanStep, results: Sequence[StepResult]) -> StepDone:
    """Probe the served bundle, and search labelled rows for the slices it is worst on."""
    bundle = bench.newest(results)
    handle = bench.server(bundle)
    data = bench.plan.data
    latency = diagnose(
        bundle.path,
        data,
        service=handle.endpoint.service,
        probe=_PROBES,
        labels=bench.plan.labels,
        settings=step.settings,
        context=bench.context,
    ).report
    if bench.data.labels is None or bundle.manifest.task == "other":
        note = Finding(level="info", text="without labels nobody knows where the errors are")
        return StepDone(latency.model_copy(update={"findings": (*latency.findings, note)}))
    slices = diagnose(
        bundle.path,
        data,
        labels=bench.plan.labels,
        trust=bundle.manifest.needs_trust,
        settings=step.settings,
        context=bench.context,
    ).report
    return StepDone(_joined(step, latency, slices))


def _joined(step: PlanStep, latency: Report, slices: Report) -> Report:
    return Report(
        skill=step.uses,
        title="Debug",
        summary=f"{latency.summary} {slices.summary}",
        measures=(*latency.measures, *slices.measures),
        findings=(*latency.findings, *slices.findings),
        tables=(*latency.tables, *slices.tables),
        plots=(*latency.plots, *slices.plots),
        details={"latency": latency.details, "slices": slices.details},
    )
