"""Tables of a report: numbers without powers of ten, headings above their numbers."""

from __future__ import annotations

import re

import pytest

from fairlead.core.report import Report, Table
from fairlead.core.units import format_number, format_value
from fairlead.entrypoints.render.cells import cell_text, is_number_column
from fairlead.entrypoints.render.page import render_page

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
