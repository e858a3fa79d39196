"""All candidates of a search beside the original, on the same rows, in one interleaved run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from fairlead.api.auto_plan import Target
from fairlead.backends.model_probe import probe_models
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.candidate import CandidateMeasures
from fairlead.core.dataset import Dataset, bind
from fairlead.core.ports import Array, Feeds, Runner, first_dimension
from fairlead.core.values import Value
from fairlead.measure.candidates import measure_candidates, pareto_front
from fairlead.measure.comparison import Comparison, compare, decide, rows_for
from fairlead.measure.judging import Judge
from fairlead.measure.latency import clocks_for, measure_interleaved
from fairlead.measure.quality import run_batches

__all__ = [
    "Contest",
    "Entrant",
    "FullBatch",
    "Lineup",
    "Terms",
    "cost_of",
    "hold_contest",
    "keeps_budget",
    "lined_up",
    "measure_full_batch",
    "per_row_ms",
    "words_of",
]

_NOTABLE = 0.97
"""Less than 3 % is no gain worth another model."""
_TIE = 1.03
_SPEED_ONLY_S = 0.5
_LARGEST_BATCH = 32
_LONGEST_BATCH_MS = 250.0
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


class FullBatch(Value):
    """Rows of a full batch, as a journal keeps it."""

    rows: int


def measure_full_batch(bundle: Bundle, rows: Dataset, *, trust: bool) -> FullBatch:
    """Return the largest batch, a power of two up to 32, that runs within a quarter of a second.

    One that takes longer costs as much per row, and every look at it is dear.
    """
    feeds = bind(rows, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    runner = open_runner(bundle, trust=trust)
    try:
        one = rows_for(runner, feeds, 1)
        timing = measure_interleaved(
            {"": lambda: runner.run(one)}, blocks=5, rows_per_call=first_dimension(one)
        )[""]
    finally:
        runner.close()
    fitting = _LONGEST_BATCH_MS * timing.rows_per_call / max(timing.cpu_min_ms, 1e-6)
    return FullBatch(rows=min(_LARGEST_BATCH, 2 ** int(math.log2(max(fitting, 1.0)))))


@dataclass(frozen=True)
class Terms:
    """On which rows versions are compared, what for, and for how long.

    Attributes:
        rows: Rows that nothing was chosen or learnt on.
        judge: Says what a change cost.
        target: What must get better.
        batch_rows: Rows of a full batch.
        time_limit_s: Time for the two interleaved runs together.
        allow_unproven: Whether a measured drop within the budget is enough.
        trust: Whether code that came with the model may run.
        seed: Seed of bootstrap intervals.
    """

    rows: Dataset
    judge: Judge
    target: Target
    batch_rows: int
    time_limit_s: float
    allow_unproven: bool
    trust: bool
    seed: int


class Lineup:
    """Versions in memory, the original first, all timed by the same clocks."""

    def __init__(
        self, entrants: tuple[Entrant, ...], terms: Terms, runners: dict[str, Runner]
    ) -> None:
        """Hold versions; `lined_up` opens and closes them.

        Args:
            entrants: The original first.
            terms: How they are compared.
            runners: Name → version in memory.
        """
        self._entrants = {one.name: one for one in entrants}
        self._first = entrants[0]
        self._terms, self._runners = terms, runners
        bundle = self._first.bundle
        columns = bundle.manifest.feature_columns
        self._feeds = bind(terms.rows, bundle.signature, feature_columns=columns)
        self._clocks = clocks_for(one.runtime.execution_provider for one in entrants)

    @property
    def single_row(self) -> Feeds:
        """One row, or the batch that the model prescribes."""
        return rows_for(self._runners[self._first.name], self._feeds, 1)

    def compared(self, name: str) -> Comparison:
        """Judge a version beside the original, on rows and at the edges."""
        first, terms = self._first, self._terms
        return compare(
            self._runners[first.name],
            self._runners[name],
            manifest=first.bundle.manifest,
            feeds=self._feeds,
            labels=terms.rows.labels,
            budget=terms.judge.budget,
            sizes=(first.bundle.size_bytes, self._entrants[name].bundle.size_bytes),
            served_rows=first.bundle.runtime.max_batch_size,
            time_limit_s=_SPEED_ONLY_S,
            seed=terms.seed,
            judge=terms.judge,
            clocks=self._clocks,
            known=self._answers,
        )

    @cached_property
    def _answers(self) -> Mapping[str, Array]:
        """What the original says to all rows."""
        runtime = self._first.bundle.runtime
        return run_batches(self._runners[self._first.name], self._feeds, runtime.max_batch_size)

    def measured(
        self, peak_memory: Mapping[str, int | None] | None = None
    ) -> tuple[dict[str, CandidateMeasures], dict[str, CandidateMeasures]]:
        """Measure all versions in two interleaved runs: one row per call, and full batches."""
        terms = self._terms
        single, batch = (
            measure_candidates(
                self._runners,
                self._feeds,
                sizes={name: one.bundle.size_bytes for name, one in self._entrants.items()},
                batch_rows=n_rows,
                time_limit_s=terms.time_limit_s / 2,
                peak_memory=peak_memory,
                seed=terms.seed,
                clocks=self._clocks,
            )
            for n_rows in (1, terms.batch_rows)
        )
        return single, batch


@contextmanager
def lined_up(entrants: tuple[Entrant, ...], terms: Terms) -> Iterator[Lineup]:
    """Open versions of a model beside the original.

    Args:
        entrants: The original first.
        terms: How they are compared.

    Raises:
        ModelError: One cannot be loaded.
    """
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for one in entrants:
            runners[one.name] = open_runner(one.bundle, runtime=one.runtime, trust=terms.trust)
            stack.callback(runners[one.name].close)
        yield Lineup(entrants, terms, runners)


def hold_contest(entrants: tuple[Entrant, ...], terms: Terms) -> Contest:
    """Measure and judge all entrants and name the winner.

    Args:
        entrants: The original first.
        terms: How they are compared.

    Raises:
        DataError: The metric cannot be computed on the rows.
        ModelError: The original cannot be run.
    """
    first, *others = (one.name for one in entrants)
    with lined_up(entrants, terms) as lineup:
        comparisons = {name: lineup.compared(name) for name in others}
        single, batch = lineup.measured(_peak_memory(entrants, lineup.single_row))
    verdicts = {first: (True, "")} | {
        name: keeps_budget(one, terms.allow_unproven) for name, one in comparisons.items()
    }
    return _decided(Contest(single, batch, comparisons, verdicts, (), first, ""), terms.target)


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
    """Whether several threads work: CPU time a tenth above wall time, so only the wall counts.

    The CPU time of the quietest block: that of a disturbed one may be above the median call.
    """
    return any(one.cpu_min_ms > 1.1 * one.latency_p50_ms.value for one in measures.values())


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
