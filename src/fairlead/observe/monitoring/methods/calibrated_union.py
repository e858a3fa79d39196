"""Tests of every column and of all correlations, together at one rate of false alarms."""

from __future__ import annotations

from fairlead.measure.drift import DriftReference, WindowDrift, compare
from fairlead.observe.monitoring.config import MonitoringConfig
from fairlead.observe.monitoring.window import Window

__all__ = ["detect"]


def detect(window: Window, config: MonitoringConfig) -> WindowDrift | None:
    """Compare a window with its reference; None when either has too few rows.

    Raises:
        DataError: A numeric column holds text.
    """
    reference = DriftReference.of(window.profile)
    return compare(reference, window.inputs, window.outputs, config.limits, seed=config.seed)
