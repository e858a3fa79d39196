"""How a search for the best version of a model is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.api.auto_journal import TrialResult
from fairlead.api.auto_measuring import Contest
from fairlead.api.auto_plan import ModelProfile, PlannedTrial, describe_bounds
from fairlead.api.auto_shipping import Shipped
from fairlead.core.bundle import Bundle
from fairlead.core.candidate import CandidateMeasures, Estimate
from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Series, Table
from fairlead.measure.comparison import comparison_evidence, comparison_findings
from fairlead.optimize.hardware.operators import operator_tables

__all__ = ["AutoRun", "auto_outcome"]

SKILL = "optimize-auto"
_MIB = 2.0**20


@dataclass(frozen=True)
class AutoRun:
    """Everything that a search found.

    Attributes:
        start: The original.
        made: What was written.
        config: The settings.
        profile: What was known before anything was tried.
        plan: What was tried and what not.
        results: Trial → what became of it.
        contest: The last measurement.
        n_rows: Rows that gave the last word.
        passes: How often, in sum, all rows were run to judge a version.
        reused: Steps that were read from the journal.
        are_divided: Whether the last word was given by rows of their own.
        folder: Folder of the search.
        shipped: The winner as it was written, with settings of its own; None where the contest
            measured it so, or nothing was gained.
        data_digest: Digest of the rows that gave the last word.
    """

    start: Bundle
    made: Bundle
    config: Mapping[str, Any]
    profile: ModelProfile
    plan: tuple[PlannedTrial, ...]
    results: Mapping[str, TrialResult]
    contest: Contest
    n_rows: int
    passes: float
    reused: int
    are_divided: bool
    folder: Path
    shipped: Shipped | None
    data_digest: str

    @property
    def is_better(self) -> bool:
        """Whether something helped."""
        return self.contest.winner != self.contest.original

    @property
    def single(self) -> Mapping[str, CandidateMeasures]:
        """Name → cost of one row per call; of the winner as it was written, where it differs."""
        return {**self.contest.single, **self._last(in_batches=False)}

    @property
    def batch(self) -> Mapping[str, CandidateMeasures]:
        """Name → cost of full batches, likewise."""
        return {**self.contest.batch, **self._last(in_batches=True)}

    def _last(self, *, in_batches: bool) -> dict[str, CandidateMeasures]:
        if self.shipped is None:
            return {}
        pair = self.shipped.batch if in_batches else self.shipped.single
        return dict(zip((self.contest.original, self.contest.winner), pair, strict=True))


def auto_outcome(run: AutoRun) -> Outcome[Bundle]:
    """Tell what was tried, what it came to, and what was written."""
    contest = run.contest
    report = Report(
        skill=SKILL,
        title="Optimization",
        summary=_summary(run),
        verdict="done" if run.is_better else "kept",
        measures=_measures(run),
        findings=_findings(run),
        tables=(
            _plan_table(run),
            _speed_table(contest),
            _quality_table(contest),
            *operator_tables(run.profile.roofline),
        ),
        plots=_plots(run),
        files={"bundle": str(run.made.path), "search": str(run.folder.resolve())},
        details={
            "winner": contest.winner,
            "why": contest.why,
            "target": run.config["target"],
            "pareto_front": list(contest.front),
            "family": run.profile.family,
            "bounds": run.profile.roofline.shares if run.profile.roofline else {},
            "trials": {name: one.model_dump(mode="json") for name, one in run.results.items()},
            "candidates": {
                name: one.model_dump(mode="json") for name, one in contest.single.items()
            },
            "batches": {name: one.model_dump(mode="json") for name, one in contest.batch.items()},
            "quality": {
                name: one.quality.model_dump(mode="json")
                for name, one in contest.comparisons.items()
            },
            "full_evaluations": len(contest.comparisons),
            "passes": run.passes,
            "reused_steps": run.reused,
            "runtime": run.made.runtime.model_dump(mode="json"),
            "shipped": _shipped_details(run.shipped),
            "parent_digest": run.start.digest,
            "digest": run.made.digest,
        },
    )
    return Outcome(run.made, report, _evidence(run))


def _shipped_details(shipped: Shipped | None) -> dict[str, Any] | None:
    if shipped is None:
        return None
    before, after = shipped.single
    return {
        "why": shipped.why,
        "speedup_ratio": after.speedup.value,
        "latency_p50_ms": after.latency_p50_ms.value,
        "original_latency_p50_ms": before.latency_p50_ms.value,
        "batch_speedup_ratio": shipped.batch[1].speedup.value,
    }


def _summary(run: AutoRun) -> str:
    contest, name = run.contest, run.start.name
    if not run.is_better:
        return f"{name} stays as it is: {contest.why}."
    measured = run.batch if run.config["target"] == "throughput" else run.single
    one, first = measured[contest.winner], measured[contest.original]
    drop = contest.comparisons[contest.winner].quality
    return (
        f"{name}, {contest.winner}, is the best for {run.config['target']}: {contest.why}, "
        f"{one.speedup.value:.2f} times as fast (95 % interval {one.speedup.ci_low:.2f} to "
        f"{one.speedup.ci_high:.2f}), {one.size_bytes / first.size_bytes:.2f} times the bytes; "
        f"{drop.metric.replace('_', ' ')} {drop.value:.4g} (at most {drop.upper:.4g} with 95 % "
        f"confidence) of the {drop.budget:g} allowed, on {drop.n_rows} rows."
    )


def _measures(run: AutoRun) -> tuple[Measure, ...]:
    contest = run.contest
    shown = contest.winner if run.is_better else _runner_up(contest)
    measures = [
        Measure(
            name="full_evaluations",
            value=len(contest.comparisons),
            unit="count",
            note=f"versions judged on the {run.n_rows} rows of the last test; all judging together "
            f"ran {run.passes:.1f} times as many rows as were given",
        )
    ]
    if shown is None:
        return tuple(measures)
    one, first, batch = (
        run.single[shown],
        run.single[contest.original],
        run.batch[shown],
    )
    full = run.batch[contest.original]
    note = "" if run.is_better else f"of {shown}, which was not taken"
    measures[:0] = [
        _with_interval("speedup_ratio", one.speedup, "ratio", note=note or "CPU time, one row"),
        _with_interval("latency_p50_ms", one.latency_p50_ms, "ms", first.latency_p50_ms),
        _with_interval("latency_p99_ms", one.latency_p99_ms, "ms", first.latency_p99_ms),
        _with_interval(
            "throughput_rps", batch.throughput_rps, "rps", full.throughput_rps,
            note=f"batches of {batch.rows_per_call}",
        ),
        Measure(
            name="size_bytes", value=one.size_bytes, unit="bytes", baseline=first.size_bytes
        ),
    ]  # fmt: skip
    peak, own_peak = (contest.single[name].peak_memory_bytes for name in (shown, contest.original))
    if peak is not None and own_peak is not None:
        measures.append(
            Measure(
                name="peak_memory_bytes",
                value=peak,
                unit="bytes",
                baseline=own_peak,
                note="each in a process of its own",
            )
        )
    drop = contest.comparisons[shown].quality
    if math.isfinite(drop.value):
        measures.append(
            Measure(
                name=f"{drop.metric}_ratio",
                value=drop.value,
                unit="ratio",
                ci_high=drop.upper if math.isfinite(drop.upper) else None,
                note=f"at most {drop.upper:.4g} with 95 % confidence; budget {drop.budget:g}: "
                f"{drop.verdict}",
            )
        )
    return tuple(measures)


def _runner_up(contest: Contest) -> str | None:
    names = [name for name in contest.comparisons if contest.verdicts[name][0]]
    names = names or list(contest.comparisons)
    return min(names, key=lambda name: contest.single[name].cpu_min_ms, default=None)


def _with_interval(
    name: str, found: Estimate, unit: str, before: Estimate | None = None, note: str = ""
) -> Measure:
    return Measure(
        name=name,
        value=found.value,
        unit=unit,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        baseline=None if before is None else before.value,
        note=note,
    )


def _findings(run: AutoRun) -> tuple[Finding, ...]:
    contest, profile, runtime = run.contest, run.profile, run.made.runtime
    found = []
    if profile.roofline is not None:
        kinds = ", ".join(
            f"{kind} {share:.0%}" for kind, _, share in profile.roofline.by_kind()[:3]
        )
        found.append(
            Finding(
                level="info",
                text=f"the model is {_family(profile)}; its time is {describe_bounds(profile)}; "
                f"most of it is in {kinds}",
            )
        )
    elif profile.note:
        found.append(Finding(level="info", text=f"operators were not profiled: {profile.note}"))
    if not run.are_divided:
        found.append(
            Finding(
                level="warning",
                text=f"{run.n_rows} rows are too few to keep some for the last test, so the rows "
                "that chose also gave the verdict",
                advice="give more rows that the model was not trained on",
            )
        )
    if run.reused:
        found.append(
            Finding(level="info", text=f"{run.reused} step(s) were done by an earlier run")
        )
    if run.is_better:
        found += comparison_findings(contest.comparisons[contest.winner])
        found.append(
            Finding(
                level="good",
                text=f"written with {runtime.intra_op_threads or 1} thread(s), batches of up "
                f"to {runtime.max_batch_size} rows, on {runtime.execution_provider}",
            )
        )
        if run.shipped is not None:
            found.append(Finding(level="info", text=f"settings: {run.shipped.why}"))
    else:
        found.append(
            Finding(level="info", text=contest.why, advice="the original was written unchanged")
        )
    return tuple(found)


def _family(profile: ModelProfile) -> str:
    return {
        "transformer": "a transformer",
        "convolutional": "a convolutional network",
        "recurrent": "a recurrent network",
        "dense": "a dense network",
        "trees": "an ensemble of trees",
        "other": "of no kind that is known here",
        "not-onnx": "not ONNX",
    }[profile.family]


def _plan_table(run: AutoRun) -> Table:
    rows = []
    for trial in run.plan:
        result = run.results.get(trial.id)
        rows.append(
            (
                trial.id,
                trial.is_tried,
                trial.why,
                "" if result is None else _outcome(run.contest, trial.id, result),
            )
        )
    return Table(
        title="What was tried, and why",
        columns=("version", "tried", "why", "what became of it"),
        rows=tuple(rows),
    )


def _outcome(contest: Contest, name: str, result: TrialResult) -> str:
    if name == contest.winner:
        return f"written: {result.summary}"
    is_within, reason = contest.verdicts.get(name, (True, ""))
    return result.summary if is_within else f"out: {reason}"


def _speed_table(contest: Contest) -> Table:
    def row(name: str) -> tuple[str | float | None, ...]:
        one, batch = contest.single[name], contest.batch[name]
        return (
            name,
            one.speedup.value,
            one.latency_p50_ms.value,
            one.latency_p99_ms.value,
            batch.speedup.value,
            batch.throughput_rps.value,
        )

    rows = next(iter(contest.batch.values())).rows_per_call
    return Table(
        title="Speed of all versions in one interleaved run, one row and batches of "
        f"{rows} at a time",
        columns=("version", "speed-up", "p50 ms", "p99 ms", "speed-up, batch", "rows/s, batch"),
        rows=tuple(row(name) for name in contest.single),
    )


def _quality_table(contest: Contest) -> Table:
    def row(name: str) -> tuple[str | float | bool | None, ...]:
        one, found = contest.single[name], contest.comparisons.get(name)
        drop, memory = None if found is None else found.quality, one.peak_memory_bytes
        return (
            name,
            one.size_bytes / _MIB,
            None if memory is None else memory / _MIB,
            None if drop is None else drop.value,
            None if drop is None else drop.upper,
            contest.verdicts[name][0],
            name in contest.front,
            name == contest.winner,
        )

    return Table(
        title="Size and quality on rows that nothing was chosen on",
        columns=("version", "MiB", "peak MiB", "drop", "95 % bound", "kept", "Pareto", "written"),
        rows=tuple(row(name) for name in contest.single),
    )


def _plots(run: AutoRun) -> tuple[Plot, ...]:
    contest = run.contest
    in_batches = run.config["target"] == "throughput"
    measures: Mapping[str, CandidateMeasures] = contest.batch if in_batches else contest.single
    names = {name: _legend(contest, name) for name in measures}
    time = {name: one.cpu_min_ms / one.rows_per_call for name, one in measures.items()}
    size = Plot(
        title="Time and size; the lower left is best",
        kind="scatter",
        x_label=f"CPU ms per row, {'batches' if in_batches else 'one row'} at a time",
        y_label="size, MiB",
        series=tuple(
            Series(name=names[name], x=(time[name],), y=(one.size_bytes / _MIB,))
            for name, one in measures.items()
        ),
    )
    drops = {name: contest.drop_of(name) for name in measures}
    budget = float(run.config["max_drop"])
    quality = Plot(
        title="Time and drop of quality; the lower left is best",
        kind="scatter",
        x_label=size.x_label,
        y_label="drop on the last rows",
        series=tuple(
            Series(name=names[name], x=(time[name],), y=(drops[name],))
            for name in measures
            if math.isfinite(drops[name])
        ),
        marks=(("budget", budget),),
    )
    return size, quality


def _legend(contest: Contest, name: str) -> str:
    if name == contest.winner and name != contest.original:
        return f"{name} (written)"
    if not contest.verdicts[name][0]:
        return f"{name} (over budget)"
    return f"{name} (Pareto)" if name in contest.front else name


def _evidence(run: AutoRun) -> tuple[Evidence, ...]:
    contest = run.contest
    labels = {"data": run.data_digest, "parent": run.start.digest, "target": run.config["target"]}
    if run.is_better:
        return _evidence_of(run, contest.winner, run.made.digest, labels)
    shown = _runner_up(contest)
    if shown is None:
        return ()
    labels |= {"shipped": "no", "change": shown}
    return _evidence_of(run, shown, run.start.digest, labels)


def _evidence_of(
    run: AutoRun, name: str, subject: str, labels: Mapping[str, str]
) -> tuple[Evidence, ...]:
    """Return the measurements of one version; its speed is that of the last interleaved run."""
    contest = run.contest
    one = run.single[name]
    ratio = one.speedup
    values = {
        "speedup_ratio": (ratio.value, ratio.ci_low, ratio.ci_high),
        "latency_p50_ms": _triple(one.latency_p50_ms),
        "latency_p99_ms": _triple(one.latency_p99_ms),
        "throughput_rps": _triple(one.throughput_rps),
    }
    items = comparison_evidence(
        contest.comparisons[name], subject=subject, skill=SKILL, labels=labels
    )
    found = []
    for item in items:
        if item.metric in values:
            value, low, high = values[item.metric]
            update = {"value": value, "ci_low": low, "ci_high": high}
            item = item.model_copy(update={**update, "sample_size": one.n_calls})
        found.append(item)
    return tuple(found)


def _triple(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.ci_low, found.ci_high
