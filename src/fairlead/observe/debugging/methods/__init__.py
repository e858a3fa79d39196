"""The published methods of debugging, by id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fairlead.core.report import Outcome
from fairlead.observe.debugging.diagnosis import Diagnosis
from fairlead.observe.debugging.methods import latency, slices

__all__ = ["METHODS"]

METHODS: Final[dict[str, Callable[..., Outcome[Diagnosis]]]] = {
    "slices": slices.find_worst,
    "latency": latency.explain,
}
