"""Several versions of a model measured against each other in one interleaved run.

All candidates answer the same batch in short alternating blocks, so that a busy machine slows
all of them alike; see `measure.latency`. Which are worth keeping says the Pareto front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fairlead.core.candidate import CandidateMeasures, Estimate
from fairlead.core.ports import Feeds, Runner, first_dimension
from fairlead.measure.comparison import rows_for
from fairlead.measure.latency import Clocks, Timing, measure_interleaved, speedup

__all__ = ["measure_candidates", "pareto_front"]

_RESAMPLES = 500


def measure_candidates(
    runners: Mapping[str, Runner],
    feeds: Feeds,
    *,
    sizes: Mapping[str, int],
    batch_rows: int = 1,
    blocks: int = 30,
    time_limit_s: float = 10.0,
    peak_memory: Mapping[str, int | None] | None = None,
    seed: int = 0,
    clocks: Clocks | None = None,
) -> dict[str, CandidateMeasures]:
    """Measure latency, throughput and CPU time of several models on the same batch.

    Args:
        runners: Name → loaded model, the original first.
        feeds: Typical rows, one array per input; the first ones form the batch.
        sizes: Name → bytes of what is executed.
        batch_rows: Rows per call; a model with a fixed batch dimension gets its own.
        blocks: Most blocks per candidate.
        time_limit_s: Stop early after this long, but never before 5 blocks.
        peak_memory: Name → peak memory in bytes, where it was measured.
        seed: Seed of the bootstrap intervals.
        clocks: Where time is read from; the process's own clocks when None.

    Returns:
        Name → what was measured, in the order of `runners`.

    Raises:
        ModelError: A model failed on the batch.
    """
    batches = {name: rows_for(runner, feeds, batch_rows) for name, runner in runners.items()}
    timings = measure_interleaved(
        {name: partial(runner.run, batches[name]) for name, runner in runners.items()},
        rows_per_call={name: first_dimension(batch) for name, batch in batches.items()},
        blocks=blocks,
        time_limit_s=time_limit_s,
        clocks=clocks,
    )
    original = next(iter(timings.values()))
    memory = peak_memory or {}
    return {
        name: _measures(timing, original, sizes[name], memory.get(name), seed)
        for name, timing in timings.items()
    }


def _measures(
    timing: Timing, original: Timing, size: int, memory: int | None, seed: int
) -> CandidateMeasures:
    ratio = speedup(original, timing, seed=seed)
    rng = np.random.default_rng(seed)
    p50 = _bootstrap(timing.wall_ms, np.median, rng)
    rows = timing.rows_per_call
    return CandidateMeasures(
        name=timing.name,
        rows_per_call=rows,
        n_calls=timing.n_calls,
        cpu_min_ms=timing.cpu_min_ms,
        cpu_ms=_bootstrap(timing.cpu_ms, np.median, rng),
        latency_p50_ms=p50,
        latency_p99_ms=_bootstrap(timing.wall_ms, partial(np.percentile, q=99), rng),
        throughput_rps=Estimate(
            value=rows / max(p50.value, 1e-9) * 1e3,
            ci_low=rows / max(p50.ci_high, 1e-9) * 1e3,
            ci_high=rows / max(p50.ci_low, 1e-9) * 1e3,
        ),
        speedup=Estimate(value=ratio.value, ci_low=ratio.ci_low, ci_high=ratio.ci_high),
        size_bytes=size,
        peak_memory_bytes=memory,
    )


def _bootstrap(
    values: NDArray[np.float64],
    statistic: Callable[..., NDArray[np.float64]],
    rng: np.random.Generator,
) -> Estimate:
    """Return a statistic with its percentile bootstrap interval over at most 2,000 values."""
    sample = values if len(values) <= 2000 else rng.choice(values, 2000, replace=False)
    picks = rng.integers(0, len(sample), (_RESAMPLES, len(sample)))
    spread = statistic(sample[picks], axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    value = float(statistic(values))
    return Estimate(value=value, ci_low=min(float(low), value), ci_high=max(float(high), value))


def pareto_front(costs: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return the candidates that no other one beats in every respect.

    Args:
        costs: Name → costs, as many for every candidate; smaller is better, NaN counts as
            infinitely dear.

    Returns:
        The names, in the order given; of equal candidates the first one.

    Examples:
        >>> pareto_front({"a": (1.0, 4.0), "b": (2.0, 2.0), "c": (2.0, 3.0)})
        ('a', 'b')
    """
    names = list(costs)
    table = np.array([[np.inf if c != c else c for c in costs[name]] for name in names])
    kept = []
    for place, name in enumerate(names):
        no_dearer = (table <= table[place]).all(axis=1)
        is_cheaper = (table < table[place]).any(axis=1)
        is_equal = (table == table[place]).all(axis=1)
        is_beaten = (no_dearer & is_cheaper).any() or is_equal[:place].any()
        if not is_beaten:
            kept.append(name)
    return tuple(kept)
