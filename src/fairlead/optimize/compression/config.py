"""How far compression may go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config

__all__ = ["CompressionConfig", "MethodId"]

MethodId = Literal[
    "low-rank",
    "tree-selection",
    "distillation",
    "structured-pruning",
    "sparsity",
    "layer-dropping",
    "head-dropping",
    "pipeline",
]


class CompressionConfig(Config):
    """Which method, how much quality it may cost, and how long to look."""

    method: Literal["auto"] | MethodId = "auto"
    """`auto` tries what fits the model, the cheapest first; else the one to use. Without a torch
    module: `low-rank`, `tree-selection` and `distillation`; with one, all."""
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
    min_weights: int = Field(1024, ge=4)
    """Smallest matrix that `low-rank` factorises, in weights."""
    max_evaluations: int = Field(8, ge=1, le=50)
    """Most candidates per method that are judged on the search rows."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of a dense student; empty tries ever larger ones."""
    copies: int = Field(4, ge=0, le=100)
    """Rows made per row for a student to learn from, labelled by the teacher."""
    epochs: int = Field(60, ge=1, le=10_000)
    """Most times that a student, or a module after a cut, sees the training data."""
    patience: int = Field(10, ge=1)
    """Epochs without progress after which training stops."""
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Largest step of Adam; it falls to zero along a cosine."""
    temperature: float = Field(4.0, gt=0, le=100)
    """How much a teacher's scores are softened before a student learns them."""
    distil_weight: float = Field(0.9, ge=0, le=1)
    """Share of the teacher's answers in the loss; the rest is that of the labels."""
    feature_weight: float = Field(0.0, ge=0, le=100)
    """Weight of the distance between the features of teacher and student, layer by layer."""
    stages: int = Field(4, ge=1, le=20)
    """Cuts that structured pruning makes, one after the other, each followed by training; the
    same for the sizes of an automatically shrunk student."""
    max_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the channels, layers, heads or weights that the last stage removes."""
    importance: Literal["taylor", "magnitude", "bn-scale", "random"] = "taylor"
    """What a channel is worth: loss gradient times weight, its norm, or its BatchNorm scale."""
    is_global: bool = False
    """Whether layers compete for channels, or each loses the same share, which saves more time."""
    round_to: int = Field(4, ge=1, le=256)
    """Channels that are left are a multiple of this, which kernels like."""
    pattern: Literal["2:4", "4:8", "unstructured"] = "2:4"
    """Where `sparsity` puts zeros: N of M neighbours stay, or the largest anywhere."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between two checkpoints."""
    batch_rows: int = Field(1, ge=1, le=4096)
    """Rows per call when the speed is measured."""
    max_rows: int = Field(10_000, ge=1)
    """Most held-back rows that are judged; more are sampled down."""
    time_limit_s: float = Field(10.0, gt=0, le=600)
    """Longest time for one comparison of speed, in seconds."""
    seed: int = Field(0, ge=0)
    """Seed of sampling, of training and of bootstrap intervals."""
