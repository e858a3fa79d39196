"""How far quantization may go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config

__all__ = ["QuantizationConfig"]


class QuantizationConfig(Config):
    """Which method, how much quality it may cost, and what counts as a gain."""

    method: Literal["dynamic-int8"] = "dynamic-int8"
    """`dynamic-int8`: weights per channel in int8, activations quantized as they come."""
    max_drop: float = Field(0.01, ge=0, le=1)
    """Budget, as a ratio: points of accuracy, relative increase of the mean absolute error, or,
    without labels, share of changed answers."""
    allow_unproven: bool = True
    """Whether a measured drop within the budget is enough when the rows are too few to prove,
    with 95 % confidence, that the true one is."""
    goal: Literal["either", "speed", "size"] = "either"
    """What must get better for the change to be made: CPU time, bytes, or one of them."""
    batch_rows: int = Field(1, ge=1, le=4096)
    """Rows per call when the speed is measured."""
    max_rows: int = Field(10_000, ge=1)
    """Most held-back rows that are judged; more are sampled down."""
    time_limit_s: float = Field(10.0, gt=0, le=600)
    """Longest time for one comparison of speed, in seconds."""
    seed: int = Field(0, ge=0)
    """Seed of sampling and of bootstrap intervals."""
