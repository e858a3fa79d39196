"""The reference profile: what inputs and outputs looked like when the bundle was made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Value

__all__ = ["ColumnProfile", "ReferenceProfile"]


class ColumnProfile(Value):
    """The distribution of one column over the reference rows.

    A numeric column has `edges` and `counts` (a histogram whose outer bins are open),
    `quantiles` and moments; a categorical column has `categories` (value → count).
    """

    name: str
    kind: Literal["numeric", "categorical"]
    role: Literal["input", "output"]
    n_rows: int
    missing_ratio: float
    """Share of the rows without a value, 0 to 1."""
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    edges: tuple[float, ...] = ()
    """Inner bin edges, ascending; `len(counts) == len(edges) + 1`."""
    counts: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()
    """Values at 101 evenly spaced probabilities 0, 0.01 … 1."""
    categories: dict[str, int] = Field(default_factory=dict)
    other_count: int = 0
    """Rows in categories beyond the ones that are listed."""


class ReferenceProfile(Value):
    """What drift is measured against."""

    n_rows: int
    columns: tuple[ColumnProfile, ...]
    correlation: tuple[tuple[float, ...], ...] = ()
    """Pearson correlations of the numeric inputs, winsorised at their 2 % and 98 % quantiles, in
    the order of `correlated`."""
    correlated: tuple[str, ...] = ()
    data_digest: str = ""

    def column(self, name: str) -> ColumnProfile | None:
        """Return the profile of one column, or None."""
        return next((column for column in self.columns if column.name == name), None)
