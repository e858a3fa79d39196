"""A changed model beside its original: quality, edges, size and speed, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fairlead.core.bundle import BundleManifest
from fairlead.core.comparison import (
    EdgeOutcome,
    LayerDivergence,
    ModelComparison,
    OutputDivergence,
)
from fairlead.core.dataset import Array
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Feeds, Runner, first_dimension
from fairlead.core.report import Finding, Measure, Verdict
from fairlead.measure.answers import EdgeCheck, check_edges, count_lost_rows
from fairlead.measure.budget import QualityDrop
from fairlead.measure.judging import Judge
from fairlead.measure.latency import Clocks, Ratio, Timing, measure_interleaved, speedup
from fairlead.measure.quality import run_batches

__all__ = [
    "Comparison",
    "Goal",
    "SpeedTest",
    "compare",
    "comparison_evidence",
    "comparison_findings",
    "comparison_measures",
    "decide",
    "measure_speed",
    "rows_for",
    "stored_comparison",
]

Goal = Literal["either", "speed", "size", "none"]

_NOTABLE_SIZE_RATIO = 0.95
"""A change that saves less than 5 % of the bytes is no gain in size."""
_WIDE_DEVIATION = 0.1
_MANY_NEIGHBOURS = 0.05
_METRIC_WORDS = {
    "accuracy_drop": "accuracy fell by",
    "error_increase": "the mean absolute error grew by",
    "disagreement": "the predicted class changed on a share of",
    "output_deviation": "the outputs deviate by",
    "metric_drop": "the metric fell by",
    "neighbours_changed": "the nearest neighbour changed on a share of",
}


@dataclass(frozen=True)
class SpeedTest:
    """Both models timed in alternating blocks on the same rows.

    Attributes:
        before: The original.
        after: The changed model.
        ratio: How many times as fast the changed model is, by CPU time.
    """

    before: Timing
    after: Timing
    ratio: Ratio


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured about a change.

    Attributes:
        quality: The drop and whether the budget allows it.
        lost_rows: Held-back rows on which numbers became NaN or infinity.
        edges: The answers at the edges of what the model may see.
        speed: The speed on one thread.
        size_before: Bytes of the original.
        size_after: Bytes of the changed model.
        outputs: What the changed model answered to the held-back rows.
        neighbours_changed: Share of rows whose nearest other row changed; None where outputs are
            no vectors.
        divergence: How far every numeric output moved.
    """

    quality: QualityDrop
    lost_rows: int
    edges: EdgeCheck
    speed: SpeedTest
    size_before: int
    size_after: int
    outputs: Mapping[str, Array] = field(repr=False)
    neighbours_changed: float | None = None
    divergence: tuple[OutputDivergence, ...] = ()

    @property
    def size_ratio(self) -> float:
        """Bytes after, as a ratio of bytes before."""
        return self.size_after / max(self.size_before, 1)

    @property
    def is_smaller(self) -> bool:
        """Whether at least 5 % of the bytes were saved."""
        return self.size_ratio <= _NOTABLE_SIZE_RATIO


def compare(
    before: Runner,
    after: Runner,
    *,
    manifest: BundleManifest,
    feeds: Feeds,
    labels: Array | None,
    budget: float,
    sizes: tuple[int, int],
    served_rows: int,
    batch_rows: int = 1,
    time_limit_s: float = 10.0,
    seed: int = 0,
    judge: Judge | None = None,
    clocks: Clocks | None = None,
    known: Mapping[str, Array] | None = None,
) -> Comparison:
    """Measure a changed model against its original on the same rows.

    Args:
        before: The original, on one thread.
        after: The changed model, on one thread.
        manifest: Says the task and which outputs to read.
        feeds: Held-back rows, one array per input.
        labels: Shape (n_rows,), or None.
        budget: Largest drop of quality allowed, as a ratio.
        sizes: Bytes of the original and of the changed model.
        served_rows: Rows per call when the quality is judged, as many as serving runs at once:
            the scale of a dynamically quantized activation is that of the whole batch.
        batch_rows: Rows per call when the speed is measured.
        time_limit_s: Longest time for the measurement of speed.
        seed: Seed of bootstrap intervals.
        judge: How quality is judged; by labels, or else by agreement, when None.
        clocks: Where time is read from; see `clocks_for`.
        known: What the original answers to the rows, where that was computed before.

    Raises:
        DataError: No metric can be computed on the rows.
        ModelError: A model failed on the rows.
    """
    old = run_batches(before, feeds, served_rows) if known is None else known
    new = run_batches(after, feeds, served_rows)
    judged = judge or Judge(manifest, budget, seed=seed)
    return Comparison(
        quality=judged(old, new, labels),
        lost_rows=count_lost_rows(old, new),
        edges=check_edges(before, after, feeds),
        speed=measure_speed(
            before,
            after,
            feeds,
            batch_rows=batch_rows,
            time_limit_s=time_limit_s,
            seed=seed,
            clocks=clocks,
        ),
        size_before=sizes[0],
        size_after=sizes[1],
        outputs=new,
        neighbours_changed=judged.neighbours_changed(old, new),
        divergence=_divergence(old, new),
    )


def _divergence(
    before: Mapping[str, Array], after: Mapping[str, Array]
) -> tuple[OutputDivergence, ...]:
    found = []
    for name, old in before.items():
        if old.dtype.kind != "f" or old.size == 0:
            continue
        first, second = old.astype(np.float64), after[name].astype(np.float64)
        is_usable = np.isfinite(first) & np.isfinite(second)
        gaps = np.abs(first - second)[is_usable]
        size = float(np.abs(first[is_usable]).max(initial=0.0)) or 1.0
        if gaps.size:
            mean, largest = float(gaps.mean()) / size, float(gaps.max()) / size
            found.append(OutputDivergence(name=name, mean=mean, largest=largest))
    return tuple(found)


def stored_comparison(
    comparison: Comparison,
    *,
    parent_digest: str,
    data_digest: str,
    layers: tuple[LayerDivergence, ...] = (),
) -> ModelComparison:
    """Return what a bundle keeps of a comparison, for gates and rollouts to read.

    Args:
        comparison: What was measured.
        parent_digest: Digest of the bundle that was changed.
        data_digest: Digest of the held-back rows.
        layers: The layers that moved most.
    """
    quality, edges = comparison.quality, comparison.edges
    return ModelComparison(
        parent_digest=parent_digest,
        data_digest=data_digest,
        metric=quality.metric,
        drop=quality.value,
        drop_upper=quality.upper,
        budget=quality.budget,
        verdict=quality.verdict,
        n_rows=quality.n_rows,
        lost_rows=comparison.lost_rows,
        outputs=comparison.divergence,
        edges=tuple(EdgeOutcome(kind=k, is_lost=k in edges.lost) for k in edges.kinds),
        layers=layers,
        speedup_ratio=comparison.speed.ratio.value,
        size_ratio=comparison.size_ratio,
    )


def measure_speed(
    before: Runner,
    after: Runner,
    feeds: Feeds,
    *,
    batch_rows: int = 1,
    time_limit_s: float = 10.0,
    seed: int = 0,
    clocks: Clocks | None = None,
) -> SpeedTest:
    """Time two models in alternating blocks on the first rows; see `measure.latency`."""
    batch = rows_for(before, feeds, batch_rows)
    timings = measure_interleaved(
        {"before": lambda: before.run(batch), "after": lambda: after.run(batch)},
        rows_per_call=first_dimension(batch),
        time_limit_s=time_limit_s,
        clocks=clocks,
    )
    old, new = timings["before"], timings["after"]
    return SpeedTest(old, new, speedup(old, new, seed=seed))


def rows_for(runner: Runner, feeds: Feeds, n_rows: int) -> dict[str, Array]:
    """Return a batch of that many rows, repeating rows when there are too few.

    A model with a fixed batch dimension gets its own.
    """
    specs = runner.signature.inputs
    fixed = next((spec.shape[0] for spec in specs if spec.shape and spec.shape[0] > 0), None)
    places = np.arange(fixed or n_rows) % first_dimension(feeds)
    return {spec.name: feeds[spec.name][places] for spec in specs}


def decide(
    comparison: Comparison, *, goal: Goal = "either", allow_unproven: bool = True
) -> tuple[Verdict, str]:
    """Return whether a change is made, and why, in the middle of a sentence.

    Refused: it breaks the budget, or loses answers that the original had. Kept: it is within the
    budget but gains nothing that was asked for. Done: otherwise.

    Args:
        comparison: What was measured.
        goal: What must get better; `none` when the change itself is what was asked for.
        allow_unproven: Whether a measured drop within the budget is enough.
    """
    quality = comparison.quality
    if comparison.lost_rows:
        return "refused", (
            f"{comparison.lost_rows} of {quality.n_rows} held-back rows gave NaN or infinity "
            "where the original gave numbers"
        )
    if not quality.is_within(allow_unproven=allow_unproven):
        return "refused", _broken(quality)
    if quality.budget == 0 and quality.n_worse:
        return "refused", (
            f"{quality.n_worse} of {quality.n_rows} held-back rows got worse, and a budget of 0 "
            "allows none"
        )
    if comparison.edges.lost:
        return "refused", (
            f"rows at the edge ({', '.join(comparison.edges.lost)}) failed or gave NaN or "
            "infinity where the original gave numbers"
        )
    is_faster = comparison.speed.ratio.is_faster
    gains = {
        "speed": is_faster,
        "size": comparison.is_smaller,
        "either": is_faster or comparison.is_smaller,
    }
    if goal != "none" and not gains[goal]:
        return "kept", f"the result is not {_wanted(goal)}: {_gain(comparison)}"
    return "done", _gain(comparison)


def _wanted(goal: Goal) -> str:
    return {"speed": "faster", "size": "smaller"}.get(goal, "smaller or faster")


def _gain(comparison: Comparison) -> str:
    ratio = comparison.speed.ratio
    return (
        f"{comparison.size_ratio:.2f} times the bytes, {ratio.value:.2f} times as fast "
        f"(95 % interval {ratio.ci_low:.2f} to {ratio.ci_high:.2f})"
    )


def _broken(quality: QualityDrop) -> str:
    drop = f"{_METRIC_WORDS[quality.metric]} {quality.value:.4g}"
    if quality.verdict == "broken":
        return f"{drop} on {quality.n_rows} held-back rows, above the budget of {quality.budget:g}"
    return (
        f"{drop} on {quality.n_rows} held-back rows, but up to {quality.upper:.4g} cannot be "
        f"ruled out, and the budget is {quality.budget:g}"
    )


def comparison_measures(comparison: Comparison) -> tuple[Measure, ...]:
    """Return the numbers of a comparison for a report."""
    quality, speed = comparison.quality, comparison.speed
    rows = f"{speed.after.rows_per_call} row(s) per call, one thread"
    return (
        Measure(
            name="size_bytes",
            value=comparison.size_after,
            unit="bytes",
            baseline=comparison.size_before,
        ),
        Measure(
            name="speedup_ratio",
            value=speed.ratio.value,
            unit="ratio",
            ci_low=speed.ratio.ci_low,
            ci_high=speed.ratio.ci_high,
            note=f"CPU time, {speed.ratio.n_blocks} alternating blocks, {rows}",
        ),
        Measure(
            name="latency_p50_ms",
            value=speed.after.latency_p50_ms,
            unit="ms",
            baseline=speed.before.latency_p50_ms,
            note=rows,
        ),
        Measure(
            name="latency_p99_ms",
            value=speed.after.latency_p99_ms,
            unit="ms",
            baseline=speed.before.latency_p99_ms,
            note=rows,
        ),
        Measure(
            name=f"{quality.metric}_ratio",
            value=quality.value,
            unit="ratio",
            ci_high=quality.upper,
            note=f"budget {quality.budget:g}, {quality.n_rows} rows, {quality.n_worse} worse, "
            f"{quality.n_better} better: {quality.verdict}",
        ),
    )


def comparison_findings(comparison: Comparison) -> tuple[Finding, ...]:
    """Return what a reader of the numbers should know."""
    found: list[Finding] = []
    quality, edges, ratio = comparison.quality, comparison.edges, comparison.speed.ratio
    if quality.verdict == "unproven":
        settle = quality.rows_to_prove
        found.append(
            Finding(
                level="warning",
                text=f"the measured drop of {quality.value:.4g} is within the budget of "
                f"{quality.budget:g}, but {quality.n_rows} rows cannot rule out "
                f"{quality.upper:.4g}",
                advice=f"about {settle:,} rows like these would settle it"
                if settle
                else "no number of rows like these would settle it; raise the budget or accept it",
            )
        )
    if ratio.is_slower:
        found.append(
            Finding(
                level="warning",
                text=f"it is slower on this machine: {ratio.value:.2f} times as fast",
                advice="set goal = speed (--goal speed) to keep the original in such a case",
            )
        )
    if (comparison.neighbours_changed or 0.0) > _MANY_NEIGHBOURS:
        found.append(
            Finding(
                level="warning",
                text=f"{comparison.neighbours_changed:.0%} of the rows have another nearest "
                "neighbour now, however close the vectors are",
                advice="judge by what you search: --metric neighbours, or a function of your own",
            )
        )
    if not edges.lost and edges.largest_deviation > _WIDE_DEVIATION:
        found.append(
            Finding(
                level="info",
                text=f"on the edge row `{edges.deviating}` an output moves by "
                f"{edges.largest_deviation:.0%} of its size",
                advice="check such rows if your users send them",
            )
        )
    return tuple(found)


def comparison_evidence(
    comparison: Comparison, *, subject: str, skill: str, labels: Mapping[str, str]
) -> tuple[Evidence, ...]:
    """Return the measurements of a comparison for the evidence store.

    Args:
        comparison: What was measured.
        subject: Digest of the bundle that was measured.
        skill: Id of the skill that measured it.
        labels: Further dimensions, for example the digest of the data.
    """
    quality, speed = comparison.quality, comparison.speed

    def item(
        metric: str,
        value: float,
        unit: str,
        method: str,
        n: int,
        interval: tuple[float | None, float | None] = (None, None),
    ) -> Evidence:
        return Evidence(
            metric=metric,
            value=value,
            unit=unit,
            method=method,
            subject=subject,
            sample_size=n,
            ci_low=interval[0],
            ci_high=interval[1],
            skill=skill,
            labels=labels,
        )

    cpu = "interleaved blocks, CPU time, one thread"
    wall = "interleaved blocks, wall time, one thread"
    ratio, after = speed.ratio, speed.after
    interval = (ratio.ci_low, ratio.ci_high)
    upper = quality.upper if np.isfinite(quality.upper) else None
    items = [
        item("size_bytes", comparison.size_after, "bytes", "size of the model file", 1),
        item("speedup_ratio", ratio.value, "ratio", cpu, ratio.n_blocks, interval),
        item("latency_p50_ms", after.latency_p50_ms, "ms", wall, after.n_calls),
        item("latency_p99_ms", after.latency_p99_ms, "ms", wall, after.n_calls),
        item("throughput_rps", after.throughput_rps, "rps", wall, after.n_calls),
    ]
    if np.isfinite(quality.value):
        items.append(
            item(
                f"{quality.metric}_ratio",
                quality.value,
                "ratio",
                "paired on held-back rows, one-sided 95 % bound",
                quality.n_rows,
                (None, upper),
            )
        )
    return tuple(items)
