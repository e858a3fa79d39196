"""What the step of a plan hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairlead.core.report import Report

__all__ = ["StepDone"]


@dataclass(frozen=True, slots=True)
class StepDone:
    """The report of a step, and the bundle that the next step starts from.

    Attributes:
        report: What was found; its verdict decides at the gate.
        bundle: Directory of the bundle; None when the step leaves it as it was.
    """

    report: Report
    bundle: Path | None = None
