"""Cells of a report's tables as text, the same on every surface."""

from __future__ import annotations

from fairlead.core.report import Table
from fairlead.core.units import format_number

__all__ = ["cell_text", "is_number_column"]

_Cell = str | float | int | bool | None


def cell_text(value: _Cell) -> str:
    """Return a cell as people read it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else format_number(value)


def is_number_column(table: Table, index: int) -> bool:
    """Whether a column holds numbers only, so that it is aligned at the right."""
    given = [row[index] for row in table.rows if row[index] is not None]
    return bool(given) and all(_is_number(value) for value in given)


def _is_number(value: _Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
