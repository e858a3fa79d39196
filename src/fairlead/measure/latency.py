"""Speed of several callables, compared so that a busy machine cannot fool the comparison.

Wall-clock time on a shared machine measures the neighbours as well. So the candidates run in
short alternating blocks (A B, B A, A B …), each block is timed in CPU time, and two candidates
are compared block by block: what disturbs a block disturbs the one beside it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Clocks",
    "Ratio",
    "Timing",
    "clocks_for",
    "is_accelerator",
    "measure_interleaved",
    "speedup",
]

_MOST_CALLS_PER_BLOCK = 5000
_FEWEST_BLOCKS = 5
_WARM_UP_SHARE = 0.1
"""Share of the time limit that warming up may take; one call of each is made in any case."""
_ACCELERATORS = (
    "CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "Dml", "CoreML", "QNN", "WebGpu",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where time is read from; both in seconds.

    Attributes:
        wall: A clock that never goes back.
        cpu: CPU time of the process, all its threads included.
    """

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


def is_accelerator(provider: str) -> bool:
    """Whether an execution provider computes elsewhere than on the CPU.

    Examples:
        >>> is_accelerator("TensorrtExecutionProvider"), is_accelerator("CPUExecutionProvider")
        (True, False)
    """
    return provider.startswith(_ACCELERATORS)


def clocks_for(providers: Iterable[str]) -> Clocks:
    """Return the clocks for models that run on these execution providers.

    CPU time tells what a model costs on a busy machine, but nothing of what an accelerator does.
    As soon as one model runs on an accelerator, wall time is all that is comparable.

    Examples:
        >>> clocks_for(["CPUExecutionProvider", "CUDAExecutionProvider"]).cpu is time.perf_counter
        True
    """
    is_away = any(is_accelerator(name) for name in providers)
    return Clocks(cpu=time.perf_counter) if is_away else Clocks()


@dataclass(frozen=True)
class Timing:
    """How long one candidate took.

    Attributes:
        name: Which candidate.
        rows_per_call: Rows that one call handles.
        cpu_ms: CPU milliseconds per call, one value per block, shape (n_blocks,), float64.
        wall_ms: Wall milliseconds of every call, shape (n_calls,), float64.
    """

    name: str
    rows_per_call: int
    cpu_ms: NDArray[np.float64] = field(repr=False)
    wall_ms: NDArray[np.float64] = field(repr=False)

    @property
    def n_calls(self) -> int:
        """Calls behind the wall-clock numbers."""
        return len(self.wall_ms)

    @property
    def cpu_min_ms(self) -> float:
        """CPU time per call in the quietest block, in ms."""
        return float(self.cpu_ms.min())

    @property
    def cpu_median_ms(self) -> float:
        """Median over blocks of the CPU time per call, in ms."""
        return float(np.median(self.cpu_ms))

    @property
    def latency_p50_ms(self) -> float:
        """Median wall time of a call, in ms."""
        return float(np.percentile(self.wall_ms, 50))

    @property
    def latency_p99_ms(self) -> float:
        """99th percentile of the wall time of a call, in ms."""
        return float(np.percentile(self.wall_ms, 99))

    @property
    def throughput_rps(self) -> float:
        """Rows per second of one caller that never pauses, at the median call."""
        return self.rows_per_call / max(self.latency_p50_ms, 1e-9) * 1e3

    @property
    def cpu_per_row_ms(self) -> float:
        """Median CPU time per row, in ms."""
        return self.cpu_median_ms / self.rows_per_call


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast, with a 95 % confidence interval.

    Attributes:
        value: Above 1 means faster.
        ci_low: Lower end.
        ci_high: Upper end.
        n_blocks: Pairs of blocks behind it.
    """

    value: float
    ci_low: float
    ci_high: float
    n_blocks: int

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.ci_low > 1

    @property
    def is_slower(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.ci_high < 1


def measure_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    blocks: int = 30,
    block_ms: float = 4.0,
    warm_up: int = 3,
    rows_per_call: int | Mapping[str, int] = 1,
    time_limit_s: float = 10.0,
    clocks: Clocks | None = None,
) -> dict[str, Timing]:
    """Time several callables in alternating blocks.

    Every block of a candidate holds as many calls as fit into `block_ms`, at least one. The
    order turns round from block to block, so that a drift of the machine hits all alike.

    Args:
        candidates: Name → what is called; at least one.
        blocks: Blocks per candidate.
        block_ms: Length of a block, in ms.
        warm_up: Calls per candidate that are not counted, at least 1; fewer where calls are slow.
        rows_per_call: Rows that one call handles, for all candidates or for each by name.
        time_limit_s: Stop early after this long, but never before 5 blocks.
        clocks: Where time is read from; the process's own clocks when None.

    Returns:
        Name → timing, in the order of `candidates`.
    """
    read = clocks or Clocks()
    deadline = read.wall() + time_limit_s
    warming_s = _WARM_UP_SHARE * time_limit_s / max(len(candidates), 1)
    calls = {
        name: _calls_per_block(call, block_ms, warm_up, warming_s, read)
        for name, call in candidates.items()
    }
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    for block in range(blocks):
        if block >= min(_FEWEST_BLOCKS, blocks) and read.wall() > deadline:
            break
        for name in order:
            cpu[name].append(_run_block(candidates[name], calls[name], wall[name], read))
        order.reverse()
    rows = rows_per_call if isinstance(rows_per_call, Mapping) else {}
    every = rows_per_call if isinstance(rows_per_call, int) else 1
    return {
        name: Timing(name, rows.get(name, every), np.array(cpu[name]), np.array(wall[name]))
        for name in candidates
    }


def _calls_per_block(
    call: Callable[[], object], block_ms: float, warm_up: int, warming_s: float, read: Clocks
) -> int:
    fastest, begun = float("inf"), read.wall()
    for place in range(max(warm_up, 1)):
        start = read.wall()
        if place and start - begun > warming_s:
            break
        call()
        fastest = min(fastest, read.wall() - start)
    wanted = block_ms / 1e3 / max(fastest, 1e-7)
    return int(min(max(round(wanted), 1), _MOST_CALLS_PER_BLOCK))


def _run_block(
    call: Callable[[], object], n_calls: int, wall_ms: list[float], read: Clocks
) -> float:
    """Run one block, append the wall time of every call, return the CPU ms per call."""
    wall, note = read.wall, wall_ms.append
    cpu_start = read.cpu()
    before = wall()
    for _ in range(n_calls):
        call()
        after = wall()
        note((after - before) * 1e3)
        before = after
    return (read.cpu() - cpu_start) * 1e3 / n_calls


def speedup(before: Timing, after: Timing, *, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Compare two candidates of one interleaved measurement by CPU time per row.

    The value is the median over blocks of before/after; the interval is the percentile
    bootstrap over pairs of blocks (Efron & Tibshirani, 1993, chapter 13).

    Args:
        before: The slower one, if all went well.
        after: The faster one; as many blocks as `before`.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Examples:
        >>> slow = Timing("slow", 1, np.full(8, 4.0), np.full(8, 4.0))
        >>> fast = Timing("fast", 1, np.full(8, 2.0), np.full(8, 2.0))
        >>> speedup(slow, fast).value
        2.0
    """
    n_blocks = min(len(before.cpu_ms), len(after.cpu_ms))
    tiny = 1e-9
    old = np.maximum(before.cpu_ms[:n_blocks], tiny) / before.rows_per_call
    new = np.maximum(after.cpu_ms[:n_blocks], tiny) / after.rows_per_call
    ratios = old / new
    picks = np.random.default_rng(seed).integers(0, n_blocks, size=(resamples, n_blocks))
    spread = np.median(ratios[picks], axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high), n_blocks)
