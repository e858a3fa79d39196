"""The distribution of one column, reference and current side by side, as a plot."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fairlead.core.profile import ColumnProfile
from fairlead.core.report import Plot, Series
from fairlead.measure.drift import ColumnShift
from fairlead.measure.profile import count_bins, count_categories
from fairlead.measure.windows import as_numbers
from fairlead.observe.monitoring.window import Window

__all__ = ["distribution_plot"]

_MOST_CATEGORIES = 12


def distribution_plot(window: Window, shift: ColumnShift) -> Plot:
    """Draw the shares of a column's bins or categories, reference against current."""
    column = next(
        c for c in window.profile.columns if c.name == shift.column and c.role == shift.role
    )
    columns = window.inputs if shift.role == "input" else window.outputs
    values = columns[shift.column]
    if column.kind == "categorical":
        names = [*column.categories, "(other)"]
        before = np.array([*column.categories.values(), column.other_count], dtype=np.float64)
        now = count_categories(column, values).astype(np.float64)
        order = np.argsort(-(before + now), kind="stable")[:_MOST_CATEGORIES]
        names, before, now = [names[i] for i in order], before[order], now[order]
    else:
        names = _bin_names(column)
        before = np.array(column.counts, dtype=np.float64)
        now = count_bins(column, as_numbers(column.name, values)).astype(np.float64)
        if not column.counts:
            names, before, now = ["any value"], np.zeros(1), now
    return Plot(
        title=f"{shift.column}: reference and current",
        kind="bar",
        x_label=shift.column,
        y_label="share of the rows",
        series=(
            Series(name="reference", x=tuple(names), y=_shares(before)),
            Series(name="current", x=tuple(names), y=_shares(now)),
        ),
    )


def _shares(counts: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, ...]:
    total = max(float(counts.sum()), 1.0)
    return tuple((counts / total).tolist())


def _bin_names(column: ColumnProfile) -> list[str]:
    edges = [f"{edge:.4g}" for edge in column.edges]
    if not edges:
        return ["any value"]
    middle = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *middle, f"≥ {edges[-1]}"]
