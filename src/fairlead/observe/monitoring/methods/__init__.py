"""The published methods of comparing a window with a reference, by id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fairlead.measure.drift import WindowDrift
from fairlead.observe.monitoring.config import MonitoringConfig
from fairlead.observe.monitoring.methods import calibrated_union
from fairlead.observe.monitoring.window import Window

__all__ = ["METHODS", "Method"]

Method = Callable[[Window, MonitoringConfig], WindowDrift | None]
"""Takes a window and the settings; returns None when there is too little to judge."""

METHODS: Final[dict[str, Method]] = {"calibrated-union": calibrated_union.detect}
