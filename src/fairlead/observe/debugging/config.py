"""What counts as a slice worth reading, and how request times are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config
from fairlead.measure.slices import SliceLimits

__all__ = ["DebuggingConfig"]


class DebuggingConfig(Config):
    """How a diagnosis is made."""

    max_level: Literal[1, 2, 3] = 2
    """Most conditions that describe a slice."""
    min_support: float = Field(0.01, gt=0, lt=1)
    """Smallest slice, as a share of the rows."""
    min_rows: int = Field(20, ge=5)
    """Smallest slice in rows, in each half; the larger of the two limits holds."""
    min_lift: float = Field(1.2, ge=1)
    """Smallest error of a slice relative to all rows."""
    alpha: float = Field(0.05, gt=0, le=0.5)
    """Share of false slices among the reported ones that is accepted."""
    top: int = Field(10, ge=1, le=100)
    """Most slices that are reported."""
    bins: int = Field(5, ge=2, le=20)
    """Parts that a numeric column is cut into, at the quantiles of the reference."""
    latency_goal_ms: float | None = Field(None, gt=0)
    """Latency that requests should keep at the 95th percentile; a slower service is a warning."""
    seed: int = Field(0, ge=0)
    """Seed of the split into halves and of resampling."""

    def slice_limits(self, n_rows: int) -> SliceLimits:
        """The part that the search obeys, for a number of rows."""
        return SliceLimits(
            max_level=self.max_level,
            min_rows=max(self.min_rows, int(self.min_support * n_rows / 2)),
            alpha=self.alpha,
            min_lift=self.min_lift,
            top=self.top,
            seed=self.seed,
        )
