"""What counts as drift, and as a loss of quality."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config
from fairlead.measure.two_samples import DriftLimits

__all__ = ["MonitoringConfig"]


class MonitoringConfig(Config):
    """How a window is compared with the reference, and when that is worth an alert."""

    method: Literal["calibrated-union"] = "calibrated-union"
    """`calibrated-union`: Wasserstein, Kolmogorov-Smirnov, chi-square and exact tests per column
    and a test of all correlations, together at one rate of false alarms."""
    alpha: float = Field(0.05, gt=0, le=0.5)
    """Largest accepted chance of a false alarm per window, all columns together."""
    min_effect: float = Field(0.02, ge=0, le=10)
    """Smallest shift of a column that matters: in reference standard deviations for numbers,
    Cohen's w for categories. A smaller one never alarms, however many rows show it."""
    min_share_change: float = Field(0.01, ge=0, le=1)
    """Smallest change that matters in the share of missing values, and smallest share of values
    outside the reference's range or categories."""
    min_correlation_change: float = Field(0.1, ge=0, le=2)
    """Smallest change of a correlation between two inputs that matters."""
    min_rows: int = Field(30, ge=10)
    """Fewest rows that are judged; a smaller window gives the signal `no-data`."""
    max_rows: int = Field(20_000, ge=100)
    """Most rows that are compared; a larger window is thinned evenly, at random."""
    max_quality_drop: float = Field(0.02, ge=0)
    """Loss of the bundle's primary score that is tolerated when labels are known, in units of
    the score (0.02 of accuracy is two points)."""
    shown_columns: int = Field(3, ge=0, le=20)
    """Drifted columns whose two distributions are put into the report."""
    seed: int = Field(0, ge=0)
    """Seed of the thinning."""

    @property
    def limits(self) -> DriftLimits:
        """The part that the tests of drift obey."""
        return DriftLimits(
            alpha=self.alpha,
            min_effect=self.min_effect,
            min_share_change=self.min_share_change,
            min_correlation_change=self.min_correlation_change,
            min_rows=self.min_rows,
            max_rows=self.max_rows,
        )
