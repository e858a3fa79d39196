"""Reports as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.errors import MissingExtraError
from fairlead.core.report import Measure, Plot, Report
from fairlead.core.units import format_value
from fairlead.entrypoints.render.cells import cell_text, is_number_column

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render_page"]


def render_page(title: str, lead: str, reports: Sequence[Report]) -> str:
    """Draw reports as one page.

    Args:
        title: Heading of the page.
        lead: One or two sentences under it.
        reports: In the order they are read.

    Returns:
        A complete HTML document; plots are inline SVG when matplotlib is installed, and are
        left to the tables with a note when it is not.
    """
    return _template().render(
        title=title, lead=lead, reports=reports, svg=_svg, value=_value, interval=_interval,
        cell=cell_text, is_number=is_number_column,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True)
    return environment.get_template("page.html.jinja")


def _svg(plot: Plot) -> str:
    from markupsafe import Markup, escape

    from fairlead.entrypoints.render.charts import plot_svg

    try:
        return Markup(plot_svg(plot))  # noqa: S704 (our own drawing, texts escaped by matplotlib)
    except MissingExtraError as exc:
        return Markup("<p class='note'>{}</p>").format(escape(f"{exc.message}; {exc.hint}"))


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else format_value(value, unit)


def _interval(measure: Measure) -> str:
    if measure.ci_low is None or measure.ci_high is None:
        return ""
    ends = (format_value(end, measure.unit) for end in (measure.ci_low, measure.ci_high))
    return " … ".join(ends)
