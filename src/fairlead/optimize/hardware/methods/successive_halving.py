"""Successive halving: measure all settings briefly, the better half for longer, and so on.

Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
AISTATS 2016. Within a round the settings run in alternating blocks (`measure.latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairlead.core.ports import Feeds, Runner, first_dimension
from fairlead.measure.latency import Clocks, Ratio, Timing, measure_interleaved, speedup

__all__ = ["BatchStep", "Tournament", "grow_batch", "successive_halving"]

_FIRST_BLOCKS = 8
_INFLATION_LIMIT = 1.3
"""Settings that burn this many times the CPU of the most frugal ones are out, however fast: with
more than one request at a time the CPU they burn is missing elsewhere."""
_TIE_RATIO = 1.1
"""More threads must make a call a tenth faster than fewer: the noise of a busy machine does not."""
_BATCH_GAIN = 1.05
"""A batch twice as large must make a row at least 5 % cheaper, or be within noise of that: a
limit that noise set too low costs more than one that is too high."""

_LONG_RUN_MS = 100.0
"""A run this long hides what a call costs besides: twice the batch must then show its gain, as
every look at it takes seconds."""
_DOUBLING_BLOCKS = (12, 40)


@dataclass(frozen=True)
class Tournament:
    """Which settings won.

    Attributes:
        winner: Name of the winner.
        timings: Name → last timing, every setting that was measured.
        rounds: Name → rounds it stayed in.
    """

    winner: str
    timings: Mapping[str, Timing]
    rounds: Mapping[str, int]


def successive_halving(
    runners: Mapping[str, Runner],
    batch: Feeds,
    *,
    goal: Literal["latency", "throughput"],
    time_limit_s: float,
    clocks: Clocks | None = None,
) -> Tournament:
    """Find the settings that run a batch best.

    Args:
        runners: Name → the model under these settings, the most frugal settings first: where two
            are within a tenth of each other, the earlier one wins.
        batch: Rows to run.
        goal: `latency`: least wall time per call, among settings that burn at most 1.3 times the
            CPU of the most frugal ones. `throughput`: least CPU time per row.
        time_limit_s: Time for all rounds together.
        clocks: Where time is read from; the process's own clocks when None.
    """
    alive = list(runners)
    n_rounds = max((len(alive) - 1).bit_length(), 1)
    timings: dict[str, Timing] = {}
    rounds = dict.fromkeys(alive, 0)
    for number in range(n_rounds):
        timings.update(
            measure_interleaved(
                {name: _call(runners[name], batch) for name in alive},
                blocks=_FIRST_BLOCKS * 2**number,
                rows_per_call=first_dimension(batch),
                time_limit_s=time_limit_s / n_rounds,
                clocks=clocks,
            )
        )
        for name in alive:
            rounds[name] += 1
        ranked = _rank({name: timings[name] for name in alive}, goal)
        best = set(ranked[: (len(ranked) + 1) // 2] if number < n_rounds - 1 else ranked[:1])
        alive = [name for name in alive if name in best]
    return Tournament(alive[0], timings, rounds)


def _call(runner: Runner, batch: Feeds) -> Callable[[], object]:
    return lambda: runner.run(batch)


def _cost(timing: Timing, goal: str) -> float:
    """Return what is minimised; of the wall times the lower quartile, as neighbours only add."""
    if goal == "latency":
        return float(np.percentile(timing.wall_ms, 25))
    return timing.cpu_per_row_ms


def _rank(timings: Mapping[str, Timing], goal: str) -> list[str]:
    """Return the names from the best to the worst.

    Those that are as good as the best, give or take a tenth, keep their order; wasteful ones come
    last.
    """
    frugal = min(timing.cpu_median_ms for timing in timings.values())
    costs = {
        name: _cost(timing, goal)
        for name, timing in timings.items()
        if timing.cpu_median_ms <= _INFLATION_LIMIT * frugal
    }
    best = min(costs.values()) * _TIE_RATIO
    tied = [name for name, cost in costs.items() if cost <= best]
    rest = sorted((name for name in costs if name not in tied), key=lambda name: costs[name])
    wasteful = sorted(set(timings) - set(costs), key=lambda name: _cost(timings[name], goal))
    return [*tied, *rest, *wasteful]


@dataclass(frozen=True)
class BatchStep:
    """One batch size that was tried.

    Attributes:
        rows: Rows per call.
        timing: How long it took.
        gain: How many times cheaper a row is than at half the size; 1 for a single row.
        is_taken: Whether it was good enough to grow to.
    """

    rows: int
    timing: Timing
    gain: float
    is_taken: bool


def grow_batch(
    runner: Runner,
    batch_of: Callable[[int], Feeds],
    *,
    largest: int,
    latency_budget_ms: float | None,
    time_limit_s: float,
    clocks: Clocks | None = None,
) -> tuple[BatchStep, ...]:
    """Double the batch until it is shown not to pay.

    Args:
        runner: The model under its settings.
        batch_of: Returns a batch of that many rows.
        largest: Largest batch to try, in rows.
        latency_budget_ms: Longest a run may take at its 99th percentile, in ms.
        time_limit_s: Time for all sizes together.
        clocks: Where time is read from; the process's own clocks when None.

    Returns:
        The sizes that were tried; the last one that is taken is the batch to use.
    """
    n_steps = max(largest.bit_length(), 1)
    first = measure_interleaved(
        {"1": _call(runner, batch_of(1))},
        blocks=10,
        time_limit_s=time_limit_s / n_steps,
        clocks=clocks,
    )["1"]
    steps = [BatchStep(1, first, 1.0, True)]
    rows = 2
    while rows <= largest:
        timing, gain = _doubled(runner, batch_of, rows, time_limit_s / n_steps, clocks)
        is_in_time = latency_budget_ms is None or (timing.latency_p99_ms <= latency_budget_ms)
        reached = gain.value if _is_long(timing) else gain.ci_high
        is_taken = reached >= _BATCH_GAIN and is_in_time
        steps.append(BatchStep(rows, timing, gain.value, is_taken))
        if not is_taken:
            break
        rows *= 2
    return tuple(steps)


def _is_long(timing: Timing) -> bool:
    return timing.cpu_median_ms > _LONG_RUN_MS


def _doubled(
    runner: Runner,
    batch_of: Callable[[int], Feeds],
    rows: int,
    time_limit_s: float,
    clocks: Clocks | None,
) -> tuple[Timing, Ratio]:
    """Time a batch beside one of half the size; look longer where noise could decide."""
    half, whole = str(rows // 2), str(rows)
    for blocks in _DOUBLING_BLOCKS:
        timings = measure_interleaved(
            {half: _call(runner, batch_of(rows // 2)), whole: _call(runner, batch_of(rows))},
            blocks=blocks,
            rows_per_call={half: rows // 2, whole: rows},
            time_limit_s=time_limit_s,
            clocks=clocks,
        )
        ratio = speedup(timings[half], timings[whole])
        if _is_long(timings[whole]) or not ratio.ci_low < _BATCH_GAIN <= ratio.ci_high:
            break
    return timings[whole], ratio
