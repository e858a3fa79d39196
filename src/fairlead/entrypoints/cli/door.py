"""What every command shares: options, progress, and how an outcome or an error leaves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

    from fairlead.core.report import Outcome, Report

__all__ = ["JsonFlag", "TerminalProgress", "finish", "progress", "show", "talk"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def talk() -> Console:
    """Return the console that talks to people, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class TerminalProgress:
    """Progress as bars and sentences on stderr; implements the port `Progress`."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def begin(self, title: str, total: int | None = None) -> None:
        """Show a new bar; the one before is finished."""
        if self._task is not None:
            self._bars.stop_task(self._task)
            self._bars.update(self._task, visible=False)
        self._task = self._bars.add_task(title, total=total)

    def advance(self, units: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, units)

    def note(self, text: str) -> None:
        """Write one sentence above the bar."""
        self._bars.console.print(text, markup=False)


@contextmanager
def progress(unit: str | None = None) -> Iterator[TerminalProgress]:
    """Show progress on stderr while the block runs; only sentences when it is no terminal.

    Args:
        unit: What is counted; then the bar also says how many of them a second, and how long it
            will take.
    """
    from rich import progress as rich

    columns: list[rich.ProgressColumn] = [
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TextColumn("{task.completed:,.0f}"),
    ]
    if unit is not None:
        columns += [_rate_column(unit), rich.TimeRemainingColumn()]
    columns += [rich.TimeElapsedColumn()]
    console = talk()
    with rich.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        yield TerminalProgress(bars)


def _rate_column(unit: str) -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many units a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    return Rate()


def show(document: Any) -> None:  # noqa: ANN401 (anything JSON-able)
    """Print one JSON document on stdout; a non-finite number becomes null."""
    import json
    import math

    def clean(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {str(key): clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return value

    # Escapes where stdout is not UTF-8, so that what is written stays JSON.
    is_plain = "utf" not in (sys.stdout.encoding or "utf-8").lower()
    text = json.dumps(clean(document), ensure_ascii=is_plain, default=str)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def finish(outcome: Outcome[Any], *, as_json: bool) -> None:
    """Print what a verb found, and leave with exit code 1 when the answer is no."""
    present(outcome.report, as_json=as_json)
    if outcome.is_refused:
        raise typer.Exit(1)


def present(report: Report, *, as_json: bool) -> None:
    """Print a report: JSON on stdout, or text for people."""
    if as_json:
        show(report.model_dump(mode="json"))
        return
    from fairlead.entrypoints.render.terminal import print_report

    print_report(report)
