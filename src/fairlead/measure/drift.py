"""How far a window moved from the reference profile, and whether that is more than chance.

Every test knows that the reference is itself a sample, answers "is the shift larger than the
smallest one that matters" rather than "is it exactly zero", and works on the counts of the
profile's bins, so the reference rows are not needed. docs/decisions/drift-calibration.md tells
why these tests, and how often they alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Array
from fairlead.core.profile import ColumnProfile, ReferenceProfile
from fairlead.measure.categorical_drift import category_tests
from fairlead.measure.dependence import RelationShift, has_relations, relation_tests
from fairlead.measure.numeric_drift import numeric_tests
from fairlead.measure.tails import cauchy_combination, holm
from fairlead.measure.two_samples import DriftLimits
from fairlead.measure.windows import (
    CategoryCounts,
    NumericCounts,
    NumericReference,
    count_categorical,
    count_numeric,
    thin,
)

__all__ = ["ColumnShift", "DriftLimits", "DriftReference", "WindowDrift", "compare"]

Floats = NDArray[np.float64]

_SHARES = {"input": 0.7, "relation": 0.15, "output": 0.15}
"""How the accepted rate of false alarms is divided over the three families of tests."""

_STRICTER = 10
"""How much stricter, at most, the question is whether a shift matters than whether there is one:
asked of every column on its own, it has no other correction for their number."""

_WEIGHTS = {
    "wasserstein": 0.5,
    "kolmogorov-smirnov": 0.1,
    "chi-square": 0.2,
    "exact-split": 0.8,
    "unseen-categories": 0.1,
    "out-of-range": 0.1,
    "missing-values": 0.1,
}
"""How much each test counts within a column; only the ratios matter."""


@dataclass(frozen=True, slots=True)
class ColumnShift:
    """What was found in one column.

    Attributes:
        column: Its name.
        role: Whether the model takes or gives it.
        kind: Whether it is numeric or categorical.
        method: The test that speaks loudest.
        p_value: After correction for the number of columns and families.
        effect: Size of the shift in `effect_unit`.
        effect_unit: `sd` (Wasserstein distance in reference standard deviations) or `w` (Cohen's
            w of the bin shares); a shift of the mean by a small d sd gives about d in both.
        is_drifted: Whether the shift is significant and large enough to matter.
        missing_before: Share of reference rows without a value.
        missing_now: Share of current rows without a value.
        strange_ratio: Share of current rows outside the reference's range or categories.
        strange_examples: Categories the reference does not list.
        mean_before: Mean of the reference, None for categories.
        mean_now: Mean of the window, None for categories.
    """

    column: str
    role: Literal["input", "output"]
    kind: Literal["numeric", "categorical"]
    method: str
    p_value: float
    effect: float
    effect_unit: str
    is_drifted: bool
    missing_before: float
    missing_now: float
    strange_ratio: float
    strange_examples: tuple[str, ...] = ()
    mean_before: float | None = None
    mean_now: float | None = None


@dataclass(frozen=True, slots=True)
class WindowDrift:
    """The comparison of one window with the reference.

    Attributes:
        n_rows: Rows of the window.
        n_used: Rows that were compared; fewer when the window is larger than `max_rows`.
        columns: Every compared column, the largest effect first.
        relations: Pairs of numeric inputs whose correlation changed, the largest change first.
        skipped: Profiled columns that the window does not have.
    """

    n_rows: int
    n_used: int
    columns: tuple[ColumnShift, ...]
    relations: tuple[RelationShift, ...]
    skipped: tuple[str, ...]

    @property
    def is_drifted(self) -> bool:
        """Whether anything drifted."""
        return bool(self.relations) or any(column.is_drifted for column in self.columns)


@dataclass(frozen=True)
class DriftReference:
    """A reference profile made ready for fast comparisons; make it once, use it often.

    Attributes:
        profile: The reference profile.
        numeric: Role → its numeric columns side by side.
    """

    profile: ReferenceProfile
    numeric: Mapping[str, NumericReference]

    @classmethod
    def of(cls, profile: ReferenceProfile) -> DriftReference:
        """Prepare a profile."""
        roles = ("input", "output")
        return cls(profile, {role: NumericReference.of(_numeric(profile, role)) for role in roles})


def compare(
    reference: DriftReference,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    limits: DriftLimits,
    *,
    seed: int = 0,
) -> WindowDrift | None:
    """Compare a window of rows with the reference.

    Without drift the chance that anything is called drifted is at most `limits.alpha`, whatever
    the number of columns: the alpha is divided over inputs, relations and outputs, and within
    each by Holm's and Bonferroni's corrections.

    Args:
        reference: The prepared reference.
        inputs: Column → array of shape (n_rows,), named as in the profile; others are ignored.
        outputs: The same for what the model gave; may be empty.
        limits: What counts as drift.
        seed: Seed of the thinning of large windows.

    Returns:
        None when the window or the reference has fewer than `limits.min_rows` rows.

    Raises:
        DataError: A numeric column holds text.
    """
    if reference.profile.n_rows < limits.min_rows:
        return None
    windows = {
        "input": _chosen(inputs, limits, seed),
        "output": _chosen(outputs, limits, seed),
    }
    n_used = max(_length(window) for window in windows.values())
    if n_used == 0:
        return None
    shares = _shares_of(reference.profile, windows)
    relations: tuple[RelationShift, ...] = ()
    if "relation" in shares:
        relations = relation_tests(
            reference.profile, windows["input"], limits, share=shares["relation"]
        )
    columns: list[ColumnShift] = []
    skipped: list[str] = []
    for role, window in windows.items():
        if window:
            columns += _family(reference, role, window, limits, shares[role])
            profiled = (c.name for c in reference.profile.columns if c.role == role)
            skipped += [name for name in profiled if name not in window]
    columns.sort(key=lambda shift: (-shift.is_drifted, -shift.effect, shift.p_value))
    n_rows = max(_length(inputs), _length(outputs))
    return WindowDrift(n_rows, n_used, tuple(columns), relations, tuple(skipped))


def _numeric(profile: ReferenceProfile, role: str) -> tuple[ColumnProfile, ...]:
    return tuple(c for c in profile.columns if c.role == role and c.kind == "numeric")


def _length(columns: Mapping[str, Array]) -> int:
    return len(next(iter(columns.values()), ()))


def _chosen(columns: Mapping[str, Array], limits: DriftLimits, seed: int) -> dict[str, Array]:
    """Thin the columns of one role; too few rows are none."""
    n_rows = _length(columns)
    if n_rows < limits.min_rows:
        return {}
    rows = thin(n_rows, limits.max_rows, seed=seed)
    return {name: array if rows is None else array[rows] for name, array in columns.items()}


def _shares_of(
    profile: ReferenceProfile, windows: Mapping[str, Mapping[str, Array]]
) -> dict[str, float]:
    present = {role for role, window in windows.items() if window}
    if has_relations(profile, windows["input"], _length(windows["input"])):
        present.add("relation")
    total = sum(_SHARES[family] for family in present)
    return {family: _SHARES[family] / total for family in present}


def _family(
    reference: DriftReference,
    role: str,
    window: Mapping[str, Array],
    limits: DriftLimits,
    share: float,
) -> list[ColumnShift]:
    """Test the columns of one role and correct them together.

    First every column is asked whether it moved at all, at the shared rate of false alarms. The
    ones that did are asked whether by more than the smallest effect that matters, each at down to
    a tenth of that rate, so that a large window does not alarm for trifles.
    """
    counted = _Counted.of(reference, role, window)
    if counted.size == 0:
        return []
    first = counted.tested(replace(limits, min_effect=0.0))
    adjusted = np.minimum(holm(first.p_values) / share, 1.0)
    is_drifted = adjusted <= limits.alpha
    if is_drifted.any() and limits.min_effect > 0:
        stricter = limits.alpha / min(_STRICTER, counted.size)
        is_drifted &= counted.tested(limits).p_values <= stricter
    return counted.shifts(first, adjusted.tolist(), is_drifted.tolist())


@dataclass(frozen=True)
class _Tested:
    """What the tests of one role's columns said, numeric ones first.

    Attributes:
        p_values: Of all tests of a column together, shape (n_columns,).
        methods: The test that speaks loudest, per column.
        distance: Wasserstein distance of the numeric columns, shape (n_numeric,).
        cohen_w: Cohen's w, shape (n_columns,).
    """

    p_values: Floats
    methods: list[str]
    distance: Floats
    cohen_w: Floats


@dataclass(frozen=True)
class _Counted:
    """The columns of one role, counted once and tested as often as needed."""

    numeric: NumericReference
    counts: NumericCounts
    categorical: tuple[tuple[ColumnProfile, CategoryCounts], ...]

    @classmethod
    def of(cls, reference: DriftReference, role: str, window: Mapping[str, Array]) -> _Counted:
        prepared = reference.numeric[role]
        columns = tuple(column for column in prepared.columns if column.name in window)
        if len(columns) < len(prepared.columns):
            prepared = NumericReference.of(columns)
        categorical = tuple(
            (column, count_categorical(column, window[column.name]))
            for column in reference.profile.columns
            if column.role == role and column.kind == "categorical" and column.name in window
        )
        return cls(prepared, count_numeric(prepared, window), categorical)

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.numeric.columns) + len(self.categorical)

    def tested(self, limits: DriftLimits) -> _Tested:
        """Test every column."""
        numbers = numeric_tests(self.numeric, self.counts, limits)
        p_values = [_combined(numbers.p_values)]
        methods = _loudest(numbers.p_values)
        cohen_w = [numbers.cohen_w]
        if self.categorical:
            texts = category_tests(self.categorical, limits)
            p_values.append(_combined(texts.p_values))
            methods += _loudest(texts.p_values)
            cohen_w.append(texts.cohen_w)
        return _Tested(np.concatenate(p_values), methods, numbers.distance, np.concatenate(cohen_w))

    def shifts(
        self, tested: _Tested, p_values: list[float], is_drifted: list[bool]
    ) -> list[ColumnShift]:
        """Describe every column."""
        n_numeric = len(self.numeric.columns)
        rows = list(zip(tested.methods, p_values, is_drifted, tested.cohen_w.tolist(), strict=True))
        described = [
            self._number(index, tested.distance[index].item(), *row)
            for index, row in enumerate(rows[:n_numeric])
        ]
        for (column, counts), row in zip(self.categorical, rows[n_numeric:], strict=True):
            described.append(_category(column, counts, *row))
        return described

    def _number(
        self,
        index: int,
        distance: float,
        method: str,
        p_value: float,
        is_drifted: bool,
        cohen_w: float,
    ) -> ColumnShift:
        column, counts = self.numeric.columns[index], self.counts
        present = counts.present[index].item()
        strange = counts.under[index].item() + counts.over[index].item()
        return ColumnShift(
            column=column.name,
            role=column.role,
            kind="numeric",
            method=method,
            p_value=p_value,
            effect=max(distance, cohen_w),
            effect_unit="sd" if distance >= cohen_w else "w",
            is_drifted=is_drifted,
            missing_before=column.missing_ratio,
            missing_now=1 - present / counts.n_rows,
            strange_ratio=strange / max(present, 1),
            mean_before=column.mean,
            mean_now=counts.mean[index].item(),
        )


def _category(
    column: ColumnProfile,
    counts: CategoryCounts,
    method: str,
    p_value: float,
    is_drifted: bool,
    cohen_w: float,
) -> ColumnShift:
    has_strange = not column.other_count and counts.present > 0
    return ColumnShift(
        column=column.name,
        role=column.role,
        kind="categorical",
        method=method,
        p_value=p_value,
        effect=cohen_w,
        effect_unit="w",
        is_drifted=is_drifted,
        missing_before=column.missing_ratio,
        missing_now=counts.missing / max(counts.missing + counts.present, 1),
        strange_ratio=counts.unlisted / counts.present if has_strange else 0.0,
        strange_examples=counts.examples if has_strange else (),
    )


def _combined(p_values: Mapping[str, Floats]) -> Floats:
    return cauchy_combination(list(p_values.values()), [_WEIGHTS[name] for name in p_values])


def _loudest(p_values: Mapping[str, Floats]) -> list[str]:
    names = list(p_values)
    table = np.stack([np.where(np.isnan(p), 2.0, p) for p in p_values.values()])
    return [names[place] for place in table.argmin(axis=0).tolist()]
