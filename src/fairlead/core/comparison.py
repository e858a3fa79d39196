"""How a changed model compares with the one it was made from; kept in its bundle."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fairlead.core.values import Config, Value

__all__ = [
    "ComparisonGate",
    "EdgeOutcome",
    "LayerDivergence",
    "ModelComparison",
    "OutputDivergence",
]

_REWRITERS = {"quantization-for-inference", "model-compression-techniques", "optimize-auto"}
"""What changes a model and so has to leave a comparison."""


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


class ComparisonGate(Config):
    """What the comparison that a changed bundle carries must say before it goes any further."""

    comparison: Literal["required", "checked", "ignored"] = "checked"
    """`checked`: a comparison that is there must hold, and a bundle that was quantized or
    compressed must carry one. `required`: every bundle must. `ignored`: nobody looks."""
    max_stored_drop: float | None = Field(None, ge=0, le=1)
    """Largest drop that it may state, as a ratio; the budget that the change was made under when
    None."""
    max_stored_upper: float | None = Field(None, ge=0, le=1)
    """Largest 95 % bound of the drop that it may state, as a ratio; any when None."""

    def refusals(self, stored: ModelComparison | None, *, made_by: str) -> tuple[str, ...]:
        """Return why a bundle may not go on; empty when it may.

        Args:
            stored: The comparison in the bundle.
            made_by: The command or skill that wrote the bundle.
        """
        if self.comparison == "ignored":
            return ()
        if stored is None:
            if self.comparison == "required" or made_by in _REWRITERS:
                return (f"it was made by {made_by} and carries no comparison with its original",)
            return ()
        return tuple(self._broken(stored))

    def _broken(self, stored: ModelComparison) -> list[str]:
        limit = stored.budget if self.max_stored_drop is None else self.max_stored_drop
        what = stored.metric.replace("_", " ")
        found = []
        # A NaN is no proof of anything, so the question is what holds, not what is broken.
        if not stored.drop <= limit:
            found.append(f"its {what} of {stored.drop:.4g} is more than {limit:g}")
        elif stored.verdict == "broken" and self.max_stored_drop is None:
            found.append(f"its {what} of {stored.drop:.4g} broke the budget of {stored.budget:g}")
        bound = self.max_stored_upper
        if bound is not None and not stored.drop_upper <= bound:
            shown = f"{stored.drop_upper:.4g}" if math.isfinite(stored.drop_upper) else "unknown"
            found.append(f"the 95 % bound of its {what} is {shown}, more than {bound:g}")
        if stored.lost_rows:
            found.append(f"{stored.lost_rows} rows became NaN or infinite")
        lost = [edge.kind for edge in stored.edges if edge.is_lost]
        if lost:
            found.append(f"it no longer answers rows at the edge: {', '.join(lost)}")
        return found
