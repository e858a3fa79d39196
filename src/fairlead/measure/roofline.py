"""What limits an operator: arithmetic, memory, or neither.

The roofline model (Williams, Waterman & Patterson, Communications of the ACM 52(4), 2009): an
operator cannot be faster than its arithmetic at the machine's peak, nor than its bytes at the
machine's bandwidth. What takes several times as long as both is held up by something else: calls,
small shapes, branches, kernels that do not fit the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["BOUNDS", "Bound", "MachinePeaks", "OperatorCost", "Roofline"]

Bound = Literal["compute-bound", "memory-bound", "overhead-bound"]

BOUNDS: tuple[Bound, ...] = ("compute-bound", "memory-bound", "overhead-bound")

_EXPLAINED = 0.25
"""Less than this share of the time explained by the roofline: something else holds it up."""


@dataclass(frozen=True)
class MachinePeaks:
    """What one thread of this machine reaches at most, measured.

    Attributes:
        gflops: Billion fp32 operations per second in a large matrix product.
        int8_gops: Billion 8-bit operations per second in one.
        gbytes_per_s: Billion bytes per second read and written by a copy beyond the caches.
    """

    gflops: float
    int8_gops: float
    gbytes_per_s: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which on arithmetic limits, in fp32."""
        return self.gflops / self.gbytes_per_s


@dataclass(frozen=True)
class OperatorCost:
    """One operator of a graph, as it ran.

    Attributes:
        name: Name of its node after graph rewriting.
        operator: Its kind.
        time_ms: Time of one run, in ms.
        flops: Arithmetic operations of one run, from the shapes; 0 where it only moves data.
        n_bytes: Bytes that it reads and writes at least.
        is_int8: Whether its arithmetic is in 8 bits.
    """

    name: str
    operator: str
    time_ms: float
    flops: float
    n_bytes: float
    is_int8: bool = False

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / max(self.n_bytes, 1.0)

    @property
    def gflops(self) -> float:
        """Billion operations per second that it reached."""
        return self.flops / max(self.time_ms, 1e-9) / 1e6

    def peak_ratio(self, peaks: MachinePeaks) -> float:
        """Return the share of the machine's arithmetic peak that it reached."""
        return self.gflops / (peaks.int8_gops if self.is_int8 else peaks.gflops)

    def bound(self, peaks: MachinePeaks) -> Bound:
        """Return what limits it.

        Examples:
            >>> peaks = MachinePeaks(gflops=100, int8_gops=400, gbytes_per_s=10)
            >>> OperatorCost("a", "MatMul", 1.0, 90e6, 1e5).bound(peaks)
            'compute-bound'
            >>> OperatorCost("b", "MatMul", 1.0, 2e6, 9e6).bound(peaks)
            'memory-bound'
            >>> OperatorCost("c", "Reshape", 1.0, 0, 100).bound(peaks)
            'overhead-bound'
        """
        peak = peaks.int8_gops if self.is_int8 else peaks.gflops
        arithmetic_ms = self.flops / peak / 1e6
        memory_ms = self.n_bytes / peaks.gbytes_per_s / 1e6
        if max(arithmetic_ms, memory_ms) < _EXPLAINED * self.time_ms:
            return "overhead-bound"
        return "compute-bound" if arithmetic_ms >= memory_ms else "memory-bound"


@dataclass(frozen=True)
class Roofline:
    """The operators of a model under the roof of a machine.

    Attributes:
        peaks: What the machine reaches.
        operators: In order of execution.
        rows: Rows of the batch that was run.
    """

    peaks: MachinePeaks
    operators: Sequence[OperatorCost]
    rows: int

    @property
    def time_ms(self) -> float:
        """Time of all operators."""
        return sum(one.time_ms for one in self.operators)

    @property
    def shares(self) -> dict[Bound, float]:
        """Return the share of the time by what limits it."""
        whole = max(self.time_ms, 1e-9)
        found = dict.fromkeys(BOUNDS, 0.0)
        for one in self.operators:
            found[one.bound(self.peaks)] += one.time_ms / whole
        return found

    @property
    def bound(self) -> Bound:
        """What limits most of the time."""
        shares = self.shares
        return max(BOUNDS, key=lambda name: shares[name])

    @property
    def peak_ratio(self) -> float | None:
        """Share of the arithmetic peak that the whole model reached; None without arithmetic."""
        ideal = sum(
            one.flops / (self.peaks.int8_gops if one.is_int8 else self.peaks.gflops) / 1e6
            for one in self.operators
        )
        return ideal / max(self.time_ms, 1e-9) if ideal > 0 else None

    def share_of(self, kinds: frozenset[str]) -> float:
        """Return the share of the time in operators of these kinds."""
        whole = max(self.time_ms, 1e-9)
        return sum(one.time_ms for one in self.operators if one.operator in kinds) / whole

    def by_kind(self) -> list[tuple[str, int, float]]:
        """Return kinds of operators, how many there are, and their share of the time."""
        kinds = list(dict.fromkeys(one.operator for one in self.operators))
        rows = [
            (kind, sum(one.operator == kind for one in self.operators),
             self.share_of(frozenset({kind})))
            for kind in kinds
        ]  # fmt: skip
        return sorted(rows, key=lambda row: -row[2])
