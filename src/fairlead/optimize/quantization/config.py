"""How far quantization may go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config

__all__ = ["MethodId", "QuantizationConfig"]

MethodId = Literal[
    "dynamic-int8",
    "static-int8",
    "smoothquant",
    "nncf-int8",
    "weight-int8",
    "weight-int4",
    "fp16",
    "bf16",
    "fp8",
]


class QuantizationConfig(Config):
    """Which method, how much quality it may cost, and what counts as a gain."""

    method: Literal["auto"] | MethodId = "auto"
    """`auto` measures them all and judges the most promising first; else the one to use."""
    max_drop: float = Field(0.01, ge=0, le=1)
    """Budget, as a ratio: points of accuracy, relative increase of the mean absolute error, or,
    without labels, share of changed answers. 0 allows no row to get worse."""
    metric: str = Field("auto", min_length=1)
    """What the budget is spent in: `auto` (labels, else agreement with the original), `cosine`
    or `neighbours` of vectors, or `module:function`, called with the outputs and the labels."""
    allow_unproven: bool = True
    """Whether a measured drop within the budget is enough when the rows are too few to prove,
    with 95 % confidence, that the true one is."""
    goal: Literal["either", "speed", "size"] = "either"
    """What must get better for the change to be made: CPU time, bytes, or one of them."""
    allow_mixed: bool = True
    """Whether layers may stay in float when all of them in 8 bits break the budget."""
    max_evaluations: int = Field(4, ge=1, le=50)
    """Most versions whose quality is judged before the last, independent test."""
    runtime: Literal["any", "onnxruntime", "openvino"] = "any"
    """What may run the result: whatever is installed, or only one of them."""
    calibration_rows: int = Field(128, ge=1, le=10_000)
    """Rows that ranges of activations are taken from; they never judge the budget."""
    calibration_method: Literal["minmax", "entropy", "percentile", "moving-average"] = "minmax"
    """How the range of an activation is chosen from what calibration saw."""
    percentile: float = Field(99.99, ge=50, le=100)
    """Share of the values inside the range, in percent, for `percentile`."""
    per_channel: bool = True
    """One scale per output channel of a weight, or one per weight tensor."""
    symmetric: bool = False
    """Whether zero lies in the middle of an activation's levels."""
    operators: tuple[Literal["MatMul", "Gemm", "Conv", "ConvTranspose"], ...] = ()
    """Operators that are quantized statically; all of them when empty."""
    smoothing: float = Field(0.8, ge=0, le=1)
    """How much of the outliers `smoothquant` moves from activations into weights."""
    block_size: Literal[16, 32, 64, 128] = 32
    """Weights that share a scale in `weight-int4` and `weight-int8`."""
    rounding: Literal["rtn", "hqq", "gptq"] = "rtn"
    """How weights of `weight-int4` and `weight-int8` are rounded."""
    batch_rows: int = Field(1, ge=1, le=4096)
    """Rows per call when the speed is measured."""
    max_rows: int = Field(10_000, ge=1)
    """Most held-back rows that are judged; more are sampled down."""
    time_limit_s: float = Field(10.0, gt=0, le=600)
    """Longest time for one comparison of speed, in seconds."""
    seed: int = Field(0, ge=0)
    """Seed of sampling and of bootstrap intervals."""
