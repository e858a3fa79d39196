"""What was measured about one version of a model that competes with others."""

from __future__ import annotations

from fairlead.core.values import Value

__all__ = ["CandidateMeasures", "Estimate"]


class Estimate(Value):
    """A measured number with its 95 % confidence interval."""

    value: float
    ci_low: float
    ci_high: float


class CandidateMeasures(Value):
    """Cost of one candidate, measured in the same interleaved run as all the others."""

    name: str
    """Which candidate."""
    rows_per_call: int
    """Rows that one call handled."""
    n_calls: int
    """Calls behind the wall-clock numbers."""
    cpu_min_ms: float
    """CPU time of a call in the quietest block, in ms, all threads included."""
    cpu_ms: Estimate
    """Median over blocks of the CPU time of a call, in ms."""
    latency_p50_ms: Estimate
    """Median wall time of a call, in ms."""
    latency_p99_ms: Estimate
    """99th percentile of the wall time of a call, in ms."""
    throughput_rps: Estimate
    """Rows per second of one caller that never pauses."""
    speedup: Estimate
    """How many times as fast as the original, by CPU time, block by block; 1 for itself."""
    size_bytes: int
    """Bytes of what is executed."""
    peak_memory_bytes: int | None = None
    """Most memory that loading and running it took beyond an idle process; None: not measured."""
