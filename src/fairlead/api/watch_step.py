"""The step of a plan that watches what is served: a control, a stream, alert rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from fairlead.api.bench import Bench
from fairlead.api.blueprints import MonitorStepConfig, check_settings
from fairlead.api.planted_shift import PlantedShift, plant_shift
from fairlead.api.step_outcome import StepDone
from fairlead.api.stream_windows import stream_through
from fairlead.backends.endpoint import ServerHandle
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.files import write_text
from fairlead.core.plan import PlanStep, StepResult
from fairlead.core.ports import Array
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Table, Verdict
from fairlead.core.signal import Signal
from fairlead.observe.debugging import DebuggingConfig, Diagnosis, diagnose_slices
from fairlead.observe.monitoring import MonitoringConfig, monitor

__all__ = ["watch"]

_SKILL = "production-monitoring-and-alerting"
Drawn = TypeVar("Drawn", Table, Plot)

_GIVE_MORE = "pack and plan with more rows that look like production"


@dataclass(frozen=True)
class _Scene:
    bench: Bench
    bundle: Bundle
    handle: ServerHandle
    config: MonitorStepConfig

    def sample(self, data: Dataset) -> Dataset:
        """Return at most as many rows as the settings allow, spread over the data."""
        if data.n_rows <= self.config.max_rows:
            return data
        return data.take(np.linspace(0, data.n_rows - 1, self.config.max_rows).astype(np.int64))

    def feeds(self, data: Dataset) -> dict[str, Array]:
        """Return the input tensors of some rows."""
        columns = self.bundle.manifest.feature_columns
        return bind(data, self.bundle.signature, feature_columns=columns)

    def watch(self, feeds: Mapping[str, Array]) -> Outcome[Signal]:
        """Send rows through the service and judge the window that the log shows."""
        batch = stream_through(self.handle, self.bundle, feeds, context=self.bench.context)
        service = self.handle.endpoint.service
        return monitor(self.bundle, batch, MonitoringConfig(), service=service)


def watch(bench: Bench, step: PlanStep, results: Sequence[StepResult]) -> StepDone:
    """Send the plan's rows, then a stream or a planted shift, and say what the alerts said."""
    config = cast(MonitorStepConfig, check_settings(step.uses, step.settings))
    bundle = bench.newest(results)
    scene = _Scene(bench, bundle, bench.server(bundle), config)
    control = scene.watch(scene.feeds(scene.sample(bench.data)))
    if config.stream is None:
        report = _drill(scene, control)
    else:
        report = _stream(scene, control, scene.sample(bench.rows(config.stream)))
    rules = _write_rules(scene)
    files = {**report.files, "alert rules": rules}
    return StepDone(report.model_copy(update={"files": files}))


def _stream(scene: _Scene, control: Outcome[Signal], rows: Dataset) -> Report:
    seen = scene.watch(scene.feeds(rows))
    scene.bench.context.record(seen)
    slices = _worst_slices(scene, rows) if seen.noun.is_alerting else None
    summary = f"The plan's own rows: {control.noun.kind}. The stream: {seen.report.summary}"
    return _joined(control, seen, slices, summary, "done")


def _drill(scene: _Scene, control: Outcome[Signal]) -> Report:
    planted = plant_shift(
        scene.bundle, scene.feeds(scene.sample(scene.bench.data)), size=scene.config.drill_shift
    )
    if control.noun.kind == "no-data" or not planted.columns:
        return _no_drill(control, planted)
    seen = scene.watch(planted.feeds)
    named = [drift.column for drift in seen.noun.drifted if drift.column in planted.columns]
    is_found = seen.noun.is_alerting and bool(named)
    shown = ", ".join(planted.columns[:3])
    said = f"a shift planted in {shown} " + (
        f"raised the alert, which names {named[0]}." if is_found else "raised no alert."
    )
    verdict: Verdict = "done" if is_found else "refused"
    summary = f"The plan's own rows: {control.noun.kind}. Drill: {said}"
    drilled = _as_drill(seen, said, is_found=is_found)
    return _joined(control, drilled, None, summary, verdict, note="in the drill")


def _as_drill(seen: Outcome[Signal], said: str, *, is_found: bool) -> Outcome[Signal]:
    """Mark what was found in rows that were made, so that nobody takes it for observed."""
    first = Finding(level="good" if is_found else "alert", text=f"drill, not observed: {said}")
    rest = [
        Finding(level="info", text=f"in the drill: {item.text}") for item in seen.report.findings
    ]
    parts = {
        "findings": (first, *rest),
        "tables": tuple(_titled(table) for table in seen.report.tables),
        "plots": tuple(_titled(plot) for plot in seen.report.plots),
    }
    return Outcome(seen.noun, seen.report.model_copy(update=parts), seen.evidence)


def _titled(part: Drawn) -> Drawn:
    return part.model_copy(update={"title": f"Drill: {part.title}"})


def _no_drill(control: Outcome[Signal], planted: PlantedShift) -> Report:
    why = "there are too few rows to judge" if planted.columns else "no input varies"
    summary = f"The plan's own rows: {control.noun.kind}. No drill: {why}."
    silent = control.report.model_copy(update={"findings": ()})
    report = _joined(control, Outcome(control.noun, silent), None, summary, "kept")
    note = Finding(level="warning", text=f"the alert was not tried: {why}", advice=_GIVE_MORE)
    return report.model_copy(update={"findings": (*report.findings, note)})


def _worst_slices(scene: _Scene, rows: Dataset) -> Outcome[Diagnosis] | None:
    if rows.labels is None or scene.bundle.manifest.task == "other":
        return None
    outcome = diagnose_slices(
        scene.bundle, rows, DebuggingConfig(), trust=scene.bundle.manifest.needs_trust
    )
    return scene.bench.context.record(outcome)


def _joined(
    control: Outcome[Signal],
    seen: Outcome[Signal],
    slices: Outcome[Diagnosis] | None,
    summary: str,
    verdict: Verdict,
    note: str = "",
) -> Report:
    drifted = [drift.column for drift in seen.noun.drifted]
    worst = slices.noun.slices[0].text if slices is not None and slices.noun.slices else None
    parts = [seen.report, *([] if slices is None else [slices.report])]
    return Report(
        skill=_SKILL,
        title="Watch",
        summary=summary,
        verdict=verdict,
        measures=(
            Measure(name="rows watched", value=seen.noun.n_rows, unit="rows", note=note),
            Measure(name="shifted columns", value=len(drifted), unit="count", note=note),
        ),
        findings=(_of_control(control), *(item for part in parts for item in part.findings)),
        tables=tuple(table for part in parts for table in part.tables),
        plots=tuple(plot for part in parts for plot in part.plots),
        details={
            "control": control.noun.kind,
            "kind": seen.noun.kind,
            "drifted": drifted,
            "worst_slice": worst,
        },
    )


def _of_control(control: Outcome[Signal]) -> Finding:
    if control.noun.kind == "no-data":
        return Finding(level="warning", text=control.report.summary)
    if not control.noun.is_alerting:
        return Finding(level="good", text="the plan's own rows raise no alert")
    text = f"the plan's own rows raise an alert: {control.report.summary}"
    return Finding(level="warning", text=text)


def _write_rules(scene: _Scene) -> str:
    from fairlead.backends.prometheus_rules import render_rules

    path = scene.bench.folder / "alert-rules.yml"
    text = render_rules(
        service=scene.handle.endpoint.service,
        slo_availability=scene.config.slo_availability,
        slo_latency_ms=scene.config.slo_latency_ms,
    )
    write_text(path, text)
    return str(path)
