"""Tables of a report: numbers without powers of ten, headings above their numbers."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from fairlead.core.report import Measure, Plot, Report, Series, Table
from fairlead.core.units import format_number, format_value
from fairlead.entrypoints.render.cells import cell_text, is_number_column
from fairlead.entrypoints.render.page import render_page
from fairlead.entrypoints.render.terminal import render_report

TABLE = Table(
    title="Batch size",
    columns=("rows", "rows per s", "drop", "taken", "why not"),
    rows=((64, 660_812.4, None, True, ""), (1, 0.00005, 0.01, False, "too slow")),
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (1.0, "1"), (0.12345, "0.1235"), (1234.0, "1234"), (42_354.0, "42,350"),
        (-42_354.0, "-42,350"), (660_812.4, "660,800"), (0.00005, "0.00005"), (-5e-05, "-0.00005"),
        (1.5e-9, "1.5e-09"), (3e15, "3e+15"), (float("nan"), "nan"), (float("inf"), "inf"),
        (670_723, "670,723"), (8080, "8080"), (-123_456, "-123,456"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value, shown):
    assert format_number(value) == shown


def test_a_rate_has_no_power_of_ten():
    assert format_value(660_812.4, "rps") == "660,800 rps"


def test_a_column_of_numbers_may_have_gaps_but_no_words():
    found = [is_number_column(TABLE, index) for index in range(5)]

    assert found == [True, True, True, False, False]
    assert [cell_text(value) for value in (None, True, False, "x", 2)] == [
        "",
        "yes",
        "no",
        "x",
        "2",
    ]


def test_the_heading_of_numbers_stands_above_them():
    report = Report(skill="s", title="t", summary="it is so.", tables=(TABLE,))

    page = render_page("t", "l", [report])

    assert re.findall(r'<th class="n">([^<]*)</th>', page) == ["rows", "rows per s", "drop"]
    assert '<td class="n">660,800</td>' in page
    assert '<td class="n"></td><td>yes</td>' in page
    assert "<th>taken</th>" in page


@pytest.mark.parametrize("note", ["", "one row"])
@pytest.mark.parametrize("low", [None, 1.0])
def test_measures_have_no_empty_columns(note, low):
    measure = Measure(name="speed", value=2.0, unit="ratio", ci_low=low, ci_high=low, note=note)
    report = Report(skill="s", title="t", summary="it is so.", measures=(measure,))

    page = render_page("t", "l", [report])
    buffer = Console(file=io.StringIO(), width=100)
    buffer.print(render_report(report))
    text = buffer.file.getvalue()

    for surface in (page, text):
        assert ("95 % interval" in surface) == (low is not None)
        assert ("note" in surface.split("measure", 1)[1].split("speed")[0]) == bool(note)


def test_a_plot_keeps_its_labels_inside_the_picture():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from fairlead.entrypoints.render import charts

    names = tuple(f"pixel_{place}" for place in range(12))
    plot = Plot(
        title="Effect per column",
        kind="bar",
        x_label="column",
        y_label="effect (reference standard deviations, or Cohen's w)",
        series=(Series(name="effect", x=names, y=tuple(1.0 for _ in names)),),
        marks=(("effect that matters", 0.02),),
    )
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    charts._draw(axes, plot)
    figure.draw_without_rendering()

    box = axes.yaxis.label.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.y1
    assert {label.get_ha() for label in axes.get_xticklabels()} == {"right"}
    assert axes.texts[0].get_bbox_patch() is not None
    assert "<svg" in charts.plot_svg(plot)
