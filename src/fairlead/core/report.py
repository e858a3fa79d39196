"""What a skill hands back: the noun, and a report that is data and does not draw itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from fairlead.core.evidence import Evidence
from fairlead.core.values import Value

__all__ = ["Finding", "Measure", "Outcome", "Plot", "Report", "Series", "Table", "Verdict"]

Verdict = Literal["done", "kept", "refused"]
"""`done`: the work was done. `kept`: measured, and rightly nothing changed. `refused`: no."""


class Measure(Value):
    """One number of a report, with its unit and, where there is one, what it is compared with."""

    name: str
    value: float
    unit: str = ""
    baseline: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    note: str = ""


class Finding(Value):
    """One sentence worth reading, and what to do about it."""

    level: Literal["info", "good", "warning", "alert"]
    text: str
    advice: str = ""


class Table(Value):
    """Rows for people; every row has as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | bool | None, ...], ...]


class Series(Value):
    """One line, or one set of points or bars, of a plot."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]


class Plot(Value):
    """A plot as data."""

    title: str
    kind: Literal["line", "bar", "scatter"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    marks: tuple[tuple[str, float], ...] = ()
    """Horizontal lines: (label, y), for thresholds."""


class Report(Value):
    """What a skill found, ready to be drawn by any door."""

    skill: str
    """Id of the skill, or of the command."""
    title: str
    summary: str
    """One or two sentences: what happened and what it means."""
    verdict: Verdict = "done"
    measures: tuple[Measure, ...] = ()
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)
    """Files that were written: role → path."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Machine-readable rest, JSON-able; for `--json` and for later steps of a plan."""
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


N = TypeVar("N", covariant=True)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[N]):
    """The noun a skill made, the report about it, and the measurements it took."""

    noun: N
    report: Report
    evidence: tuple[Evidence, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether the answer is no."""
        return self.report.verdict == "refused"
