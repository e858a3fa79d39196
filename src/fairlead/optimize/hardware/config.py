"""What tuning looks for, and how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config

__all__ = ["HardwareConfig"]


class HardwareConfig(Config):
    """What is optimised, within which limits."""

    method: Literal["successive-halving"] = "successive-halving"
    """`successive-halving`: all configurations briefly, the better half longer, until one is
    left."""
    goal: Literal["latency", "throughput"] = "latency"
    """`latency`: fastest single row. `throughput`: least CPU time per row in large batches."""
    runtime: Literal["any", "onnxruntime"] = "any"
    """What may run the result: whatever is installed (OpenVINO too), or ONNX Runtime only."""
    latency_budget_ms: float | None = Field(None, gt=0)
    """Longest a run may take at its 99th percentile, in ms; a batch that takes longer is too
    large, and a single row that does is refused. None is no limit."""
    max_threads: int | None = Field(None, ge=1)
    """Most threads within an operator; never more than the CPUs this process may use, which is
    also the default."""
    max_batch_size: int = Field(64, ge=1, le=4096)
    """Largest batch that is tried, in rows."""
    time_limit_s: float = Field(20.0, gt=0, le=600)
    """Time for all measurements together, in seconds; a slow model is measured less often."""
    seed: int = Field(0, ge=0)
    """Seed of bootstrap intervals."""
