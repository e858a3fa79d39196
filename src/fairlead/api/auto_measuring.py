"""All candidates of a search beside the original, on the same rows, in one interleaved run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from fairlead.api.auto_plan import Target
from fairlead.backends.model_probe import probe_models
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.candidate import CandidateMeasures
from fairlead.core.dataset import Dataset, bind
from fairlead.core.ports import Feeds, Runner
from fairlead.measure.candidates import measure_candidates, pareto_front
from fairlead.measure.comparison import Comparison, compare, decide, rows_for
from fairlead.measure.judging import Judge
from fairlead.measure.latency import clocks_for

__all__ = [
    "Contest",
    "Entrant",
    "cost_of",
    "hold_contest",
    "keeps_budget",
    "per_row_ms",
    "words_of",
]

_NOTABLE = 0.97
"""Less than 3 % is no gain worth another model."""
_TIE = 1.03
_SPEED_ONLY_S = 0.5
_Z95, _Z80 = 1.645, 0.842


@dataclass(frozen=True)
class Entrant:
    """One version of the model.

    Attributes:
        name: Its name.
        bundle: Where it lies.
        runtime: Settings it is measured with.
    """

    name: str
    bundle: Bundle
    runtime: RuntimeSettings


@dataclass(frozen=True)
class Contest:
    """What was measured about all of them.

    Attributes:
        single: Name → cost of one row per call, the original first.
        batch: Name → cost of full batches.
        comparisons: Name → quality and edges beside the original; not for the original.
        verdicts: Name → whether it keeps the budget, and why not.
        front: Names on the Pareto front of latency, size, memory and quality.
        winner: Name of the best that keeps the budget; the original when none gains.
        why: Why it won, or why nothing did; a clause.
    """

    single: Mapping[str, CandidateMeasures]
    batch: Mapping[str, CandidateMeasures]
    comparisons: Mapping[str, Comparison]
    verdicts: Mapping[str, tuple[bool, str]]
    front: tuple[str, ...]
    winner: str
    why: str

    @property
    def original(self) -> str:
        """Name of the original."""
        return next(iter(self.single))

    def drop_of(self, name: str) -> float:
        """Return the drop of quality; 0 for the original."""
        found = self.comparisons.get(name)
        return 0.0 if found is None else found.quality.value


def hold_contest(
    entrants: tuple[Entrant, ...],
    rows: Dataset,
    judge: Judge,
    *,
    target: Target,
    batch_rows: int,
    time_limit_s: float,
    allow_unproven: bool,
    trust: bool,
    seed: int,
) -> Contest:
    """Measure and judge all entrants and name the winner.

    Args:
        entrants: The original first.
        rows: Rows that nothing was chosen or learnt on.
        judge: Says what a change cost.
        target: What must get better.
        batch_rows: Rows of a full batch.
        time_limit_s: Time for the two interleaved runs together.
        allow_unproven: Whether a measured drop within the budget is enough.
        trust: Whether code that came with the model may run.
        seed: Seed of bootstrap intervals.

    Raises:
        DataError: The metric cannot be computed on the rows.
        ModelError: The original cannot be run.
    """
    first = entrants[0]
    feeds = bind(
        rows, first.bundle.signature, feature_columns=first.bundle.manifest.feature_columns
    )
    sizes = {one.name: one.bundle.size_bytes for one in entrants}
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for one in entrants:
            runners[one.name] = open_runner(one.bundle, runtime=one.runtime, trust=trust)
            stack.callback(runners[one.name].close)
        clocks = clocks_for(one.runtime.execution_provider for one in entrants)
        comparisons = {
            one.name: compare(
                runners[first.name],
                runners[one.name],
                manifest=first.bundle.manifest,
                feeds=feeds,
                labels=rows.labels,
                budget=judge.budget,
                sizes=(sizes[first.name], sizes[one.name]),
                served_rows=first.bundle.runtime.max_batch_size,
                time_limit_s=_SPEED_ONLY_S,
                seed=seed,
                judge=judge,
                clocks=clocks,
            )
            for one in entrants[1:]
        }
        memory = _peak_memory(entrants, rows_for(runners[first.name], feeds, 1))
        single, batch = (
            measure_candidates(
                runners, feeds, sizes=sizes, batch_rows=n_rows, time_limit_s=time_limit_s / 2,
                peak_memory=memory, seed=seed, clocks=clocks,
            )
            for n_rows in (1, batch_rows)
        )  # fmt: skip
    verdicts = {first.name: (True, "")} | {
        name: keeps_budget(one, allow_unproven) for name, one in comparisons.items()
    }
    return _decided(Contest(single, batch, comparisons, verdicts, (), first.name, ""), target)


def _peak_memory(entrants: tuple[Entrant, ...], batch: Feeds) -> dict[str, int | None]:
    if entrants[0].bundle.manifest.kind != "onnx":
        return {}
    probes = probe_models([(one.bundle.model_path, one.runtime) for one in entrants], batch)
    return {
        one.name: None if probe is None else probe.peak_memory_bytes
        for one, probe in zip(entrants, probes, strict=True)
    }


def keeps_budget(one: Comparison, allow_unproven: bool) -> tuple[bool, str]:
    """Return whether a version keeps the budget, and why not.

    Several versions compete here and the fastest wins, which favours those that were lucky on
    these rows. So a measured drop within the budget is not enough: the odds that the true one is
    must be four to one, unless no more rows got worse than better.
    """
    verdict, reason = decide(one, goal="none", allow_unproven=allow_unproven)
    quality = one.quality
    if verdict != "done":
        return False, reason
    if quality.verdict == "proven" or quality.n_worse <= quality.n_better:
        return True, ""
    spread = (quality.upper - quality.value) / _Z95
    if quality.value + _Z80 * spread <= quality.budget:
        return True, ""
    return False, (
        f"its drop of {quality.value:.4g} on {quality.n_rows} rows may well be more than "
        f"{quality.budget:g} on others: up to {quality.upper:.4g} cannot be ruled out"
    )


def _decided(contest: Contest, target: Target) -> Contest:
    allowed = [name for name, (is_within, _) in contest.verdicts.items() if is_within]
    costs = {
        name: (
            contest.single[name].cpu_min_ms,
            float(contest.single[name].size_bytes),
            float(contest.single[name].peak_memory_bytes or 0),
            max(contest.drop_of(name), 0.0),
        )
        for name in allowed
    }
    first = contest.original
    cost = {name: cost_of(contest, name, target) for name in allowed}
    better = [name for name in allowed if name != first and _gains(contest, name, target)]
    if not better:
        why = _no_gain(contest, target, [name for name in allowed if name != first])
        return replace(contest, front=pareto_front(costs), why=why)
    best = min(cost[name] for name in better)
    # Of those that are as good, give or take the noise, the one that costs least quality.
    tied = [name for name in better if cost[name] <= best * _TIE]
    winner = min(tied, key=lambda name: (max(contest.drop_of(name), 0.0), cost[name]))
    why = f"{words_of(target)} {cost[winner] / cost[first]:.2f} times that of the original"
    return replace(contest, front=pareto_front(costs), winner=winner, why=why)


def words_of(target: Target) -> str:
    """Return what is minimised for a target, in words."""
    return {
        "latency": "time of one row",
        "throughput": "time per row in batches",
        "size": "bytes",
        "memory": "peak memory",
    }[target]


def cost_of(contest: Contest, name: str, target: Target) -> float:
    """Return what is minimised for a target: ms, ms, bytes or bytes."""
    measures = contest.batch if target == "throughput" else contest.single
    one = measures[name]
    if target == "size":
        return float(one.size_bytes)
    if target == "memory":
        return float(one.peak_memory_bytes or one.size_bytes)
    return per_row_ms(measures, name)


def per_row_ms(measures: Mapping[str, CandidateMeasures], name: str) -> float:
    """Return ms per row: CPU time of the quietest block, or wall time where threads share it."""
    one = measures[name]
    is_shared = _is_shared(measures)
    return (one.latency_p50_ms.value if is_shared else one.cpu_min_ms) / one.rows_per_call


def _is_shared(measures: Mapping[str, CandidateMeasures]) -> bool:
    """Whether several threads work: CPU time a tenth above wall time, so only the wall counts."""
    return any(one.cpu_ms.value > 1.1 * one.latency_p50_ms.value for one in measures.values())


def _gains(contest: Contest, name: str, target: Target) -> bool:
    ratio = cost_of(contest, name, target) / max(cost_of(contest, contest.original, target), 1e-12)
    if target in ("size", "memory"):
        return ratio <= _NOTABLE
    measures = contest.batch if target == "throughput" else contest.single
    first, one = measures[contest.original], measures[name]
    if _is_shared(measures):
        is_certain = one.latency_p50_ms.ci_high < first.latency_p50_ms.ci_low
    else:
        is_certain = one.speedup.ci_low > 1
    return ratio <= _NOTABLE and is_certain


def _no_gain(contest: Contest, target: Target, allowed: list[str]) -> str:
    if len(contest.single) == 1:
        return "nothing could be made of it that runs"
    if not allowed:
        return "every version that was made breaks the budget on rows that nothing was chosen on"
    best = min(allowed, key=lambda name: cost_of(contest, name, target))
    ratio = cost_of(contest, best, target) / cost_of(contest, contest.original, target)
    return (
        f"of the versions that keep the budget, the best, {best}, has {ratio:.2f} times the "
        f"{words_of(target)} of the original, which is no gain beyond noise"
    )
