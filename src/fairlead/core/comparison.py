"""How a changed model compares with the one it was made from; kept in its bundle."""

from __future__ import annotations

from fairlead.core.values import Value

__all__ = ["EdgeOutcome", "LayerDivergence", "ModelComparison", "OutputDivergence"]


class OutputDivergence(Value):
    """How far one output moved on held-back rows."""

    name: str
    mean: float
    """Mean absolute difference, relative to the largest value of the original."""
    largest: float
    """Largest absolute difference, relative to the same."""


class EdgeOutcome(Value):
    """What the changed model said to one row at the edge that the original answered."""

    kind: str
    """`zeros`, `maxima`, `far-above`, `missing`, `empty`, `longest` …"""
    is_lost: bool
    """Whether it failed, or gave NaN or infinity."""


class LayerDivergence(Value):
    """How far what one layer gives moved from the original."""

    name: str
    operator: str
    sqnr_db: float
    """Power of the signal over the power of the difference, in decibels; below 10 is poor."""
    cosine: float
    """Cosine between both, -1 to 1."""


class ModelComparison(Value):
    """What a gate needs to know to refuse a changed model."""

    parent_digest: str
    """Digest of the bundle it was made from."""
    data_digest: str
    """Digest of the rows it was judged on."""
    metric: str
    """What dropped."""
    drop: float
    """The drop on the held-back rows."""
    drop_upper: float
    """Its one-sided upper 95 % bound."""
    budget: float
    verdict: str
    """`proven`, `unproven` or `broken`."""
    n_rows: int
    lost_rows: int
    """Rows on which numbers became NaN or infinity."""
    outputs: tuple[OutputDivergence, ...] = ()
    edges: tuple[EdgeOutcome, ...] = ()
    layers: tuple[LayerDivergence, ...] = ()
    """The layers that moved most, the worst first."""
    speedup_ratio: float = 1.0
    size_ratio: float = 1.0
