"""Reports as text; readable without colour."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from fairlead.core.report import Finding, Measure, Plot, Report, Table
from fairlead.core.units import format_value
from fairlead.entrypoints.render.cells import cell_text, is_number_column

__all__ = ["open_console", "print_hanging", "print_report", "render_report"]

_LEAST_COLUMNS = 20
_USUAL_COLUMNS = 80

_MARKS = {"info": "·", "good": "✓", "warning": "!", "alert": "✗"}
_STYLES = {"info": "", "good": "green", "warning": "yellow", "alert": "bold red"}
_VERDICTS = {"done": "green", "kept": "cyan", "refused": "bold red"}
_BLOCKS = "▁▂▃▄▅▆▇█"


def open_console(*, to_stderr: bool = False) -> Console:
    """Return a console that is wide enough to be read; some surroundings say COLUMNS=0."""
    console = Console(stderr=to_stderr, highlight=False)
    if console.width < _LEAST_COLUMNS:
        return Console(stderr=to_stderr, highlight=False, width=_USUAL_COLUMNS)
    return console


def print_hanging(console: Console, before: str, text: Text) -> None:
    """Print a text after a few words; its further lines are indented as far as the first."""
    width = max(console.width - len(before), _LEAST_COLUMNS)
    for number, line in enumerate(text.wrap(console, width)):
        line.rstrip()
        start = Text(before if number == 0 else " " * len(before), style=text.style)
        console.print(start + line, soft_wrap=True)


def print_report(report: Report) -> None:
    """Print a report on stdout."""
    open_console().print(render_report(report))


def render_report(report: Report) -> RenderableType:
    """Return a report as something rich can print."""
    head = Text.assemble(
        (report.title, "bold"), "  ", (f"[{report.verdict}]", _VERDICTS[report.verdict])
    )
    parts: list[RenderableType] = [head, Text(report.summary)]
    if report.measures:
        parts.append(_measures(report.measures))
    parts += [_finding(item) for item in report.findings]
    parts += [_table(item) for item in report.tables if item.rows]
    parts += [line for item in report.plots if (line := _spark(item)) is not None]
    parts += [Text(f"{role}: {path}", style="dim") for role, path in report.files.items()]
    return Group(*parts)


def _measures(measures: tuple[Measure, ...]) -> RichTable:
    has_baseline = any(item.baseline is not None for item in measures)
    table = RichTable(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right")
    if has_baseline:
        table.add_column("baseline", justify="right")
    is_bounded = any(item.ci_low is not None for item in measures)
    is_noted = any(item.note for item in measures)
    if is_bounded:
        table.add_column("95 % interval", justify="right")
    if is_noted:
        table.add_column("note", overflow="fold")
    for item in measures:
        cells = [item.name, format_value(item.value, item.unit)]
        if has_baseline:
            known = item.baseline is not None
            cells.append(format_value(item.baseline or 0.0, item.unit) if known else "")
        cells += [_interval(item)] if is_bounded else []
        cells += [item.note] if is_noted else []
        table.add_row(*[Text(cell) for cell in cells])
    return table


def _interval(item: Measure) -> str:
    if item.ci_low is None or item.ci_high is None:
        return ""
    low, high = (format_value(end, item.unit) for end in (item.ci_low, item.ci_high))
    return f"{low} … {high}"


def _finding(finding: Finding) -> Text:
    text = f" {_MARKS[finding.level]} {finding.text}"
    if finding.advice:
        text += f"\n   → {finding.advice}"
    return Text(text, style=_STYLES[finding.level])


def _table(data: Table) -> RichTable:
    table = RichTable(title=data.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(data.columns):
        justify: JustifyMethod = "right" if is_number_column(data, index) else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in data.rows:
        table.add_row(*[Text(cell_text(value)) for value in row])
    return table


def _spark(plot: Plot) -> Text | None:
    if plot.kind != "line" or not plot.series or len(plot.series[0].y) < 3:
        return None
    lines = [plot.title]
    for series in plot.series[:4]:
        low, high = min(series.y), max(series.y)
        span = (high - low) or 1.0
        step = max(1, len(series.y) // 60)
        bars = "".join(_BLOCKS[int((value - low) / span * 7)] for value in series.y[::step])
        lines.append(f"  {bars}  {series.name} ({low:.3g} … {high:.3g} {plot.y_label})")
    return Text("\n".join(lines))
