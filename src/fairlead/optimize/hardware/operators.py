"""Operators under the roof of the machine, told."""

from __future__ import annotations

from typing import Any

from fairlead.core.report import Finding, Table
from fairlead.measure.roofline import BOUNDS, Roofline

__all__ = ["operator_details", "operator_findings", "operator_tables"]

_MOST_ROWS = 15
_LONGEST_NAME = 34
_ADVICE = {
    "compute-bound": "fewer or cheaper operations help: 8 bits, pruning, a smaller model",
    "memory-bound": "fewer bytes help: weights in 8 or 4 bits, larger batches",
    "overhead-bound": "larger batches and fused operators help; a faster kernel would not",
}


def operator_findings(roofline: Roofline | None, why_not: str = "") -> tuple[Finding, ...]:
    """Say what limits most of the time, or why that is not known."""
    if roofline is None:
        return (Finding(level="info", text=f"operators were not profiled: {why_not}"),)
    shares = roofline.shares
    words = ", ".join(f"{shares[name]:.0%} {name}" for name in BOUNDS if shares[name] >= 0.005)
    reached = roofline.peak_ratio
    peak = "" if reached is None else f"; it reaches {reached:.0%} of the arithmetic peak"
    return (
        Finding(
            level="info",
            text=f"the time in operators is {words}{peak}",
            advice=_ADVICE[roofline.bound],
        ),
    )


def operator_tables(roofline: Roofline | None) -> tuple[Table, ...]:
    """Return the peaks of the machine and the slowest operators."""
    if roofline is None:
        return ()
    peaks = roofline.peaks
    slowest = sorted(roofline.operators, key=lambda one: -one.time_ms)[:_MOST_ROWS]
    whole = max(roofline.time_ms, 1e-9)
    return (
        Table(
            title=f"Slowest of {len(roofline.operators)} operators, {roofline.rows} row(s); one "
            f"thread reaches {peaks.gflops:.0f} GFLOP/s, in 8 bits {peaks.int8_gops:.0f}, and "
            f"{peaks.gbytes_per_s:.0f} GB/s, so {peaks.ridge:.1f} operations per byte balance",
            columns=(
                "operator", "share", "ms", "MFLOP", "MB", "GFLOP/s", "of peak", "limit",
            ),
            rows=tuple(
                (
                    _short(one.name, one.operator),
                    *(
                        float(f"{value:.3g}")
                        for value in (
                            one.time_ms / whole, one.time_ms, one.flops / 1e6, one.n_bytes / 1e6,
                            one.gflops, one.peak_ratio(peaks),
                        )
                    ),
                    one.bound(peaks).removesuffix("-bound"),
                )
                for one in slowest
            ),
        ),
    )  # fmt: skip


def operator_details(roofline: Roofline | None) -> dict[str, Any] | None:
    """Return the machine-readable part: peaks, shares and every operator."""
    if roofline is None:
        return None
    peaks = roofline.peaks
    return {
        "gflops": peaks.gflops,
        "int8_gops": peaks.int8_gops,
        "gbytes_per_s": peaks.gbytes_per_s,
        "shares": roofline.shares,
        "peak_ratio": roofline.peak_ratio,
        "rows": roofline.rows,
        "operators": [
            {
                "name": one.name,
                "operator": one.operator,
                "time_ms": one.time_ms,
                "flops": one.flops,
                "bytes": one.n_bytes,
                "flops_per_byte": one.intensity,
                "peak_ratio": one.peak_ratio(peaks),
                "bound": one.bound(peaks),
            }
            for one in roofline.operators
        ],
    }


def _short(name: str, operator: str) -> str:
    """Return the end of a long name, and its kind where the name does not tell it."""
    shown = name if operator.lower() in name.lower() else f"{name} ({operator})"
    return shown if len(shown) <= _LONGEST_NAME else "…" + shown[1 - _LONGEST_NAME :]
