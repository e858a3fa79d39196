"""What tuning measured, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Series, Table
from fairlead.measure.comparison import SpeedTest
from fairlead.measure.roofline import Roofline
from fairlead.measure.verdict import Bottleneck, RequestTimes
from fairlead.optimize.hardware.card import CARD
from fairlead.optimize.hardware.methods import BatchStep, Tournament
from fairlead.optimize.hardware.operators import (
    operator_details,
    operator_findings,
    operator_tables,
)
from fairlead.optimize.hardware.refining import Refined
from fairlead.optimize.hardware.sequences import SequenceAdvice

__all__ = ["Tuning", "refusal", "tuning_outcome"]

_TITLE = "Tuning"


@dataclass(frozen=True)
class Tuning:
    """Everything that tuning measured.

    Attributes:
        settings: What was chosen.
        cpus: CPUs this process may use.
        tournament: The settings that were compared.
        steps: The batch sizes that were tried.
        speed: A single row before and after, interleaved.
        requests: Times of requests, in process or from a service.
        requests_from: Where those come from, for people.
        bottleneck: What decides how long a request takes.
        refined: Further changes that were tried on what won.
        left_out: Settings that could not be compared → why.
        roofline: The operators under the roof of this machine; None where they are not known.
        no_roofline: Why they are not known; empty where they are.
        sequences: What is known of padding; None for a model without sequences of free length.
    """

    settings: RuntimeSettings
    cpus: int
    tournament: Tournament
    steps: tuple[BatchStep, ...]
    speed: SpeedTest
    requests: RequestTimes
    requests_from: str
    bottleneck: Bottleneck
    refined: Refined
    left_out: Mapping[str, str] = field(default_factory=dict)
    roofline: Roofline | None = None
    no_roofline: str = ""
    sequences: SequenceAdvice | None = None

    @property
    def largest_step(self) -> BatchStep:
        """The batch that was chosen."""
        return [step for step in self.steps if step.is_taken][-1]


def refusal(bundle: Bundle, tuning: Tuning, budget_ms: float) -> Outcome[Bundle]:
    """Tell that even a single row takes longer than the latency budget."""
    found = tuning.steps[0].timing.latency_p99_ms
    report = Report(
        skill=CARD.id,
        title=_TITLE,
        summary=f"{bundle.name} was refused: one row takes {found:.3g} ms at the 99th percentile, "
        f"above the latency budget of {budget_ms:g} ms.",
        verdict="refused",
        measures=_measures(bundle, tuning),
        findings=(
            Finding(
                level="alert",
                text="nothing was written",
                advice="quantize or compress the model first, or raise --latency-budget-ms",
            ),
        ),
        tables=(_settings_table(tuning),),
    )
    return Outcome(bundle, report, _evidence(bundle, tuning, {"shipped": "no"}))


def tuning_outcome(
    parent: Bundle, derived: Bundle, tuning: Tuning, data_digest: str
) -> Outcome[Bundle]:
    """Tell what was chosen and why."""
    settings, ratio, cause = tuning.settings, tuning.speed.ratio, tuning.bottleneck
    side = "the model" if cause.is_model else "the infrastructure"
    compiled = ", compiled by torch," if settings.torch_compile else ""
    report = Report(
        skill=CARD.id,
        title=_TITLE,
        summary=f"{parent.name} runs best{compiled} with {settings.intra_op_threads or 1} "
        f"thread(s), graph level {settings.graph_optimization} and batches of up to "
        f"{settings.max_batch_size} rows on the {tuning.cpus} CPU(s) this process may use. "
        f"What decides a request's time is {side}: {cause.text}.",
        measures=_measures(parent, tuning),
        findings=(
            _verdict_finding(tuning),
            *operator_findings(tuning.roofline, tuning.no_roofline),
            *_padding_findings(tuning.sequences),
        ),
        tables=(
            _settings_table(tuning),
            *_refinement_tables(tuning),
            _batch_table(tuning),
            _verdict_table(cause),
            *operator_tables(tuning.roofline),
        ),
        plots=(_batch_plot(tuning),),
        files={"bundle": str(derived.path)},
        details={
            "runtime": settings.model_dump(mode="json"),
            "cpus": tuning.cpus,
            "bottleneck": cause.model_dump(mode="json"),
            "requests_from": tuning.requests_from,
            "speedup_ratio": ratio.value,
            "left_out": dict(tuning.left_out),
            "roofline": operator_details(tuning.roofline),
            "padding": _padding_details(tuning.sequences),
            "parent_digest": parent.digest,
            "digest": derived.digest,
        },
    )
    labels = {"data": data_digest, "parent": parent.digest}
    return Outcome(derived, report, _evidence(derived, tuning, labels))


def _verdict_finding(tuning: Tuning) -> Finding:
    cause = tuning.bottleneck
    side = "model" if cause.is_model else "infrastructure"
    sure = "" if cause.confidence is None else f", confidence {cause.confidence:.0%}"
    return Finding(
        level="info",
        text=f"{side} ({cause.cause}): {cause.text}; {cause.share:.0%} of a request's time"
        f"{sure}, from {tuning.requests.n_requests} requests {tuning.requests_from}",
        advice=cause.advice,
    )


def _measures(parent: Bundle, tuning: Tuning) -> tuple[Measure, ...]:
    speed, step = tuning.speed, tuning.largest_step
    return (
        Measure(
            name="speedup_ratio",
            value=speed.ratio.value,
            unit="ratio",
            ci_low=speed.ratio.ci_low,
            ci_high=speed.ratio.ci_high,
            note="CPU time of one row, against the settings the bundle had",
        ),
        Measure(
            name="latency_p50_ms",
            value=speed.after.latency_p50_ms,
            unit="ms",
            baseline=speed.before.latency_p50_ms,
            note="one row",
        ),
        Measure(
            name="latency_p99_ms",
            value=speed.after.latency_p99_ms,
            unit="ms",
            baseline=speed.before.latency_p99_ms,
            note="one row",
        ),
        Measure(
            name="throughput_rps",
            value=step.timing.throughput_rps,
            unit="rps",
            baseline=tuning.steps[0].timing.throughput_rps,
            note=f"batches of {step.timing.rows_per_call} row(s), against single rows",
        ),
        Measure(
            name="model_time_share",
            value=tuning.bottleneck.model_time_share,
            unit="ratio",
            note=f"share of a request's time in which the model runs, {tuning.requests_from}",
        ),
        Measure(name="size_bytes", value=parent.size_bytes, unit="bytes"),
    )


def _settings_table(tuning: Tuning) -> Table:
    contest = tuning.tournament
    return Table(
        title="Settings",
        columns=("settings", "latency p50 ms", "CPU ms per call", "rounds", "chosen"),
        rows=tuple(
            (
                name,
                timing.latency_p50_ms,
                timing.cpu_median_ms,
                contest.rounds[name],
                name == contest.winner,
            )
            for name, timing in contest.timings.items()
        ),
    )


def _refinement_tables(tuning: Tuning) -> tuple[Table, ...]:
    rows = [
        (one.name, None if one.ratio is None else one.ratio.value,
         None if one.ratio is None else one.ratio.ci_low, one.is_taken, one.why)
        for one in tuning.refined.steps
    ]  # fmt: skip
    rows += [(name, None, None, False, why) for name, why in tuning.left_out.items()]
    if not rows:
        return ()
    return (
        Table(
            title="Further changes, each against the best so far",
            columns=("change", "times as fast", "at least", "taken", "why not"),
            rows=tuple(rows),
        ),
    )


def _padding_findings(advice: SequenceAdvice | None) -> tuple[Finding, ...]:
    if advice is None:
        return ()
    waste = advice.waste
    shares = (
        f"{waste.as_given:.0%} of the steps in these rows are padding; batches as long as their "
        f"longest row would have {waste.to_longest:.0%}, rows of like length together "
        f"{waste.in_buckets:.0%}"
    )
    if not advice.values:
        return (
            Finding(
                level="warning",
                text=f"{shares}; but the model sees its padding, so lengths stay apart",
                advice="export the model with an attention mask that hides the padding",
            ),
        )
    gain = ""
    if advice.gain is not None:
        low, high = advice.gain.ci_low, advice.gain.ci_high
        gain = f": {advice.gain.value:.2f} times as fast (95 % interval {low:.2f} to {high:.2f})"
    return (
        Finding(
            level="good",
            text=f"{shares}{gain}; the model looks away from padding, which the bundle now says",
            advice="send sequences unpadded: serving runs those of like length together",
        ),
    )


def _padding_details(advice: SequenceAdvice | None) -> dict[str, Any] | None:
    if advice is None:
        return None
    return {
        "as_given": advice.waste.as_given,
        "to_longest": advice.waste.to_longest,
        "in_buckets": advice.waste.in_buckets,
        "values": dict(advice.values),
        "gain": None if advice.gain is None else advice.gain.value,
    }


def _batch_table(tuning: Tuning) -> Table:
    return Table(
        title="Batch size",
        columns=("rows", "CPU ms per row", "latency p99 ms", "rows per s", "gain", "taken"),
        rows=tuple(
            (
                step.rows,
                step.timing.cpu_per_row_ms,
                step.timing.latency_p99_ms,
                step.timing.throughput_rps,
                step.gain,
                step.is_taken,
            )
            for step in tuning.steps
        ),
    )


def _verdict_table(cause: Bottleneck) -> Table:
    return Table(
        title="Model or infrastructure: the numbers, in the order they were looked at",
        columns=("number", "value", "threshold", "met"),
        rows=tuple((n.name, n.value, n.threshold, n.is_met) for n in cause.numbers),
    )


def _batch_plot(tuning: Tuning) -> Plot:
    return Plot(
        title="Throughput by batch size",
        kind="line",
        x_label="rows per batch",
        y_label="rows per second",
        series=(
            Series(
                name="throughput",
                x=tuple(float(step.rows) for step in tuning.steps),
                y=tuple(step.timing.throughput_rps for step in tuning.steps),
            ),
        ),
    )


def _evidence(bundle: Bundle, tuning: Tuning, labels: dict[str, str]) -> tuple[Evidence, ...]:
    speed, step, cause = tuning.speed, tuning.largest_step, tuning.bottleneck
    settings = tuning.settings
    blocks = "interleaved blocks, one row"

    def item(metric: str, value: float, unit: str, method: str, n: int) -> Evidence:
        return Evidence(
            metric=metric,
            value=value,
            unit=unit,
            method=method,
            subject=bundle.digest,
            sample_size=n,
            skill=CARD.id,
            labels={**labels, "threads": str(settings.intra_op_threads or 1)},
        )

    speedup = item("speedup_ratio", speed.ratio.value, "ratio", blocks, speed.ratio.n_blocks)
    share = item(
        "model_time_share",
        cause.model_time_share,
        "ratio",
        f"mean times of requests, {tuning.requests_from}",
        tuning.requests.n_requests,
    )
    batches = f"interleaved blocks, batches of {step.timing.rows_per_call}"
    return (
        item("size_bytes", bundle.size_bytes, "bytes", "size of the model file", 1),
        speedup.model_copy(update={"ci_low": speed.ratio.ci_low, "ci_high": speed.ratio.ci_high}),
        item("latency_p50_ms", speed.after.latency_p50_ms, "ms", blocks, speed.after.n_calls),
        item("latency_p99_ms", speed.after.latency_p99_ms, "ms", blocks, speed.after.n_calls),
        item("throughput_rps", step.timing.throughput_rps, "rps", batches, step.timing.n_calls),
        share.model_copy(update={"labels": {**share.labels, "cause": cause.cause}}),
    )
