"""What debugging hands back."""

from __future__ import annotations

from typing import Literal

from fairlead.core.values import Value

__all__ = ["Diagnosis", "TimePart", "WorstSlice"]


class WorstSlice(Value):
    """One confirmed slice."""

    conditions: tuple[str, ...]
    """What its rows have in common; all of them hold."""
    n_rows: int
    error: float
    """Mean error in the slice: share of wrong rows, or mean absolute error."""
    overall_error: float
    lift: float
    p_value: float
    """After correction for the slices that were tested."""

    @property
    def text(self) -> str:
        """The conditions in one phrase."""
        return " and ".join(self.conditions)


class TimePart(Value):
    """One part of a request's time."""

    part: str
    """`client-and-network`, `queue`, `run`, or `read-and-write`."""
    mean_ms: float
    p95_ms: float
    share: float
    """Share of the mean time, 0 to 1."""


class Diagnosis(Value):
    """What is wrong, and what to do about it."""

    method: Literal["slices", "latency"]
    subject: str
    """Bundle digest, or name of the service."""
    cause: str
    """The worst slice, the part that takes most of the time, or `none`."""
    text: str
    advice: str
    slices: tuple[WorstSlice, ...] = ()
    parts: tuple[TimePart, ...] = ()
