"""Plots of a report as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import re
import textwrap
from typing import Any, Final

from fairlead.core.extras import requires
from fairlead.core.report import Plot

__all__ = ["plot_svg"]

_COLOURS = ("#1f5f8b", "#d1495b", "#66a182", "#edae49", "#6c5b7b", "#2e4057")
_LABEL_WIDTH: Final = 28
"""Characters of a line beside the axis; what is longer would be cut at the edge of the picture."""
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "svg.hashsalt": "fairlead",
}


def plot_svg(plot: Plot) -> str:
    """Draw one plot.

    Returns:
        An `<svg>` element that scales with the page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with requires("report", needed_by="drawing a plot"):
        import matplotlib as mpl
        from matplotlib.figure import Figure
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        _draw(axes, plot)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'<svg([^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"<svg\1\2", svg, count=1)


def _draw(axes: Any, plot: Plot) -> None:  # noqa: ANN401 (untyped library)
    width = 0.8 / max(1, len(plot.series))
    for index, series in enumerate(plot.series):
        colour = _COLOURS[index % len(_COLOURS)]
        if plot.kind == "bar":
            places = [place + index * width for place in range(len(series.x))]
            axes.bar(places, series.y, width=width, color=colour, label=series.name)
        elif plot.kind == "scatter":
            axes.scatter(series.x, series.y, s=22, color=colour, label=series.name, alpha=0.8)
        else:
            axes.plot(series.x, series.y, color=colour, label=series.name, linewidth=1.6)
    if plot.kind == "bar" and plot.series:
        names = [str(value) for value in plot.series[0].x]
        centre = 0.4 - width / 2
        axes.set_xticks([place + centre for place in range(len(names))], names)
        axes.grid(visible=False, axis="x")
        if len(names) > 8:
            for label in axes.get_xticklabels():
                label.set(rotation=60, ha="right", rotation_mode="anchor")
    _draw_marks(axes, plot)
    axes.set_title(plot.title, loc="left", fontsize=11)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(textwrap.fill(plot.y_label, _LABEL_WIDTH))
    if len(plot.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_marks(axes: Any, plot: Plot) -> None:  # noqa: ANN401 (untyped library)
    """Draw the heights that matter above all else, so that bars do not hide what they are."""
    for label, height in plot.marks:
        axes.axhline(height, color="#8a8f98", linestyle="--", linewidth=1, zorder=3)
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
        axes.annotate(label, (0.99, height), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8, color="#555", bbox=paper, zorder=4,
                      xytext=(0, 2), textcoords="offset points")  # fmt: skip
