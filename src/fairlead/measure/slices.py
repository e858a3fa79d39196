"""Slices: subsets of rows, described by one to three conditions, on which a model errs most.

The score is SliceLine's (Sagadeeva and Boehm, SIGMOD 2021). What is found on one half of the rows
is reported only if the other half confirms it, so noise yields no slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fairlead.measure.tails import benjamini_hochberg, normal_sf, student_to_normal

__all__ = ["CodedFeature", "SliceFinding", "SliceLimits", "find_slices"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]
Mask = NDArray[np.bool_]

_WEIGHT = 0.95
"""SliceLine's alpha: how much a high error counts against a small size."""
_MOST_PAIRED = 120
_BEAM = 60
_CANDIDATES = 300
_TESTED = 40
_CHILD_Z = 3.0
"""How clearly each condition must make a slice worse; many conditions are tried on each."""
_OWN_Z = 2.0
"""How clearly the rows that no better slice holds must be worse than the rest."""


@dataclass(frozen=True)
class CodedFeature:
    """One feature cut into a few values.

    Attributes:
        name: Its name.
        codes: Shape (n_rows,), int32, from 0.
        values: What each code means, for people.
        is_combined: Whether it may be one of several conditions.
    """

    name: str
    codes: Codes
    values: tuple[str, ...]
    is_combined: bool = True


@dataclass(frozen=True, slots=True)
class SliceLimits:
    """What counts as a slice.

    Attributes:
        max_level: Most conditions, 1 to 3.
        min_rows: Fewest rows in either half.
        alpha: Share of false slices among the reported ones that is accepted.
        min_lift: Smallest error relative to all rows, for example 1.2.
        top: Most slices that are reported.
        seed: Seed of the split into halves.
    """

    max_level: int = 2
    min_rows: int = 20
    alpha: float = 0.05
    min_lift: float = 1.2
    top: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SliceFinding:
    """One confirmed slice.

    Attributes:
        conditions: What its rows have in common, for example `age: 60 to 70`.
        n_rows: Rows in it, over both halves.
        error: Mean error in it, on the confirming half.
        overall_error: Mean error of all rows, on the confirming half.
        lift: `error` over `overall_error`.
        score: SliceLine's score, on the searching half.
        p_value: After Benjamini and Hochberg's correction, on the confirming half.
        excess_share: Share of all errors that would go if the slice were like the other rows.
    """

    conditions: tuple[str, ...]
    n_rows: int
    error: float
    overall_error: float
    lift: float
    score: float
    p_value: float
    excess_share: float


Slice = tuple[tuple[int, int], ...]
"""Conditions as (feature, code), in order of the features."""


@dataclass(frozen=True, slots=True)
class _Scored:
    slice: Slice
    rows: int
    mean: float
    score: float


def find_slices(
    features: Sequence[CodedFeature], errors: Floats, limits: SliceLimits
) -> tuple[SliceFinding, ...]:
    """Return the slices with the worst errors, the highest score first.

    All slices of one and two conditions are looked at; of three, the ones that extend the best
    pairs.

    Args:
        features: What slices may be made of.
        errors: Error of every row, at least 0, shape (n_rows,); 0 and 1 for classification.
        limits: What counts as a slice.
    """
    n_rows = len(errors)
    order = np.random.default_rng(limits.seed).permutation(n_rows)
    search, confirm = np.sort(order[: n_rows // 2]), np.sort(order[n_rows // 2 :])
    if len(search) < 2 * limits.min_rows or errors[search].sum() <= 0:
        return ()
    half = _Half([f.codes[search] for f in features], _sizes(features), errors[search])
    combined = [place for place, feature in enumerate(features) if feature.is_combined]
    candidates = _search(half, limits, combined)
    chosen = _without_repeats(half, candidates, limits.min_rows)
    return _confirmed(features, errors, confirm, chosen, limits)


def _sizes(features: Sequence[CodedFeature]) -> list[int]:
    return [len(feature.values) for feature in features]


@dataclass(frozen=True)
class _Half:
    codes: list[Codes]
    sizes: list[int]
    errors: Floats

    def mask(self, found: Slice) -> Mask:
        """Return which rows belong to a slice."""
        mask = np.ones(len(self.errors), dtype=bool)
        for feature, code in found:
            mask &= self.codes[feature] == code
        return mask

    def scored(self, rows: Floats, sums: Floats, min_rows: int) -> Iterator[tuple[int, _Scored]]:
        """Yield the cells with enough rows and more than the average error, with their scores."""
        n, average = len(self.errors), float(self.errors.mean())
        for cell in np.flatnonzero((rows >= min_rows) & (sums > average * rows)).tolist():
            mean = float(sums[cell] / rows[cell])
            score = _WEIGHT * (mean / average - 1) - (1 - _WEIGHT) * (n / float(rows[cell]) - 1)
            if score > 0:
                yield cell, _Scored((), int(rows[cell]), mean, score)


def _search(half: _Half, limits: SliceLimits, combined: Sequence[int]) -> list[_Scored]:
    found = _level_one(half, limits)
    if limits.max_level >= 2:
        chosen = _worth_pairing(combined, found)
        pairs = _level_two(half, limits, chosen)
        found += pairs
        if limits.max_level >= 3:
            found += _level_three(half, limits, pairs, chosen)
    found.sort(key=lambda one: (-one.score, one.slice))
    return found[:_CANDIDATES]


def _sums(codes: Codes, weights: Floats, size: int) -> Floats:
    return np.bincount(codes, weights=weights, minlength=size).astype(np.float64)


def _level_one(half: _Half, limits: SliceLimits) -> list[_Scored]:
    found = []
    for feature, codes in enumerate(half.codes):
        rows = np.bincount(codes, minlength=half.sizes[feature]).astype(np.float64)
        sums = _sums(codes, half.errors, half.sizes[feature])
        for cell, one in half.scored(rows, sums, limits.min_rows):
            found.append(_Scored(((feature, cell),), one.rows, one.mean, one.score))
    return found


def _worth_pairing(combined: Sequence[int], singles: Sequence[_Scored]) -> list[int]:
    """Return the features to pair: all, or the ones with the best slices when there are many."""
    if len(combined) <= _MOST_PAIRED:
        return list(combined)
    ranked = [one.slice[0][0] for one in sorted(singles, key=lambda one: -one.score)]
    ordered = dict.fromkeys([place for place in ranked if place in set(combined)] + list(combined))
    return sorted(list(ordered)[:_MOST_PAIRED])


def _level_two(half: _Half, limits: SliceLimits, features: Sequence[int]) -> list[_Scored]:
    found: list[_Scored] = []
    has_error = half.errors > 0
    weights = half.errors[has_error]
    bad = [codes[has_error] for codes in half.codes]
    for first, second in combinations(features, 2):
        width = half.sizes[second]
        cells = half.sizes[first] * width
        # Errors are rare: most pairs are ruled out before all rows are counted.
        sums = _sums(bad[first] * width + bad[second], weights, cells)
        if not len(sums) or sums.max() <= 0:
            continue
        joint = half.codes[first] * width + half.codes[second]
        rows = np.bincount(joint, minlength=cells).astype(np.float64)
        for cell, one in half.scored(rows, sums, limits.min_rows):
            pair = ((first, cell // width), (second, cell % width))
            found.append(_Scored(pair, one.rows, one.mean, one.score))
        if len(found) > 20 * _CANDIDATES:
            found = sorted(found, key=lambda one: -one.score)[:_CANDIDATES]
    return found


def _level_three(
    half: _Half, limits: SliceLimits, pairs: Sequence[_Scored], features: Sequence[int]
) -> list[_Scored]:
    found: dict[Slice, _Scored] = {}
    for parent in sorted(pairs, key=lambda one: -one.score)[:_BEAM]:
        rows_in = np.flatnonzero(half.mask(parent.slice))
        errors = half.errors[rows_in]
        used = {feature for feature, _ in parent.slice}
        for feature in features:
            if feature in used:
                continue
            inside = half.codes[feature][rows_in]
            rows = np.bincount(inside, minlength=half.sizes[feature]).astype(np.float64)
            sums = _sums(inside, errors, half.sizes[feature])
            for cell, one in half.scored(rows, sums, limits.min_rows):
                triple = tuple(sorted((*parent.slice, (feature, cell))))
                found[triple] = _Scored(triple, one.rows, one.mean, one.score)
    return list(found.values())


def _without_repeats(half: _Half, candidates: Sequence[_Scored], min_rows: int) -> list[_Scored]:
    """Drop slices that say no more than a shorter one, or than the better ones before them."""
    kept: list[_Scored] = []
    covered = np.zeros(len(half.errors), dtype=bool)
    for one in candidates:
        mask = half.mask(one.slice)
        own, outside = mask & ~covered, ~mask & ~covered
        if own.sum() < min_rows / 2:
            continue
        if _worse_z(half.errors[own], half.errors[outside]) < _OWN_Z:
            continue
        if len(one.slice) > 1 and not _adds_to_parents(half, one, mask):
            continue
        kept.append(one)
        covered |= mask
        if len(kept) >= _TESTED:
            break
    return kept


def _adds_to_parents(half: _Half, one: _Scored, mask: Mask) -> bool:
    """Tell whether every condition makes the slice clearly worse."""
    for dropped in range(len(one.slice)):
        parent = one.slice[:dropped] + one.slice[dropped + 1 :]
        rest = half.mask(parent) & ~mask
        if not rest.any() or _worse_z(half.errors[mask], half.errors[rest]) < _CHILD_Z:
            return False
    return True


def _worse_z(inside: Floats, outside: Floats) -> float:
    """Return how clearly errors are larger inside, as a normal value (Welch, 1947)."""
    if len(inside) < 2 or len(outside) < 2:
        return 0.0
    first, second = _squared_error(inside), _squared_error(outside)
    if first + second <= 0:
        return 0.0
    t = float(inside.mean() - outside.mean()) / (first + second) ** 0.5
    bottom = first**2 / (len(inside) - 1) + second**2 / (len(outside) - 1)
    return student_to_normal(t, (first + second) ** 2 / bottom)


def _squared_error(values: Floats) -> float:
    """Return the variance of a mean; one more row of each kind keeps all-right sets honest."""
    spread = float(values.max() - values.min())
    if spread > 0:
        return float(values.var(ddof=1)) / len(values)
    share = 1 / (len(values) + 2)
    return float(values.mean() ** 2 + (values.mean() == 0)) * share * (1 - share) / len(values)


def _confirmed(
    features: Sequence[CodedFeature],
    errors: Floats,
    rows: NDArray[np.int64],
    chosen: Sequence[_Scored],
    limits: SliceLimits,
) -> tuple[SliceFinding, ...]:
    half = _Half([f.codes[rows] for f in features], _sizes(features), errors[rows])
    overall = float(half.errors.mean())
    if not chosen or overall <= 0:
        return ()
    masks = [half.mask(one.slice) for one in chosen]
    raw = np.array(
        [
            normal_sf(_worse_z(half.errors[mask], half.errors[~mask])) if mask.any() else 1.0
            for mask in masks
        ]
    )
    whole = _Half([f.codes for f in features], _sizes(features), errors)
    found = []
    for one, mask, p_value in zip(chosen, masks, benjamini_hochberg(raw).tolist(), strict=True):
        inside = int(mask.sum())
        if inside < limits.min_rows / 2 or p_value > limits.alpha:
            continue
        error = float(half.errors[mask].mean())
        if error < limits.min_lift * overall:
            continue
        outside = float(half.errors[~mask].mean())
        found.append(
            SliceFinding(
                conditions=tuple(
                    f"{features[feature].name}: {features[feature].values[code]}"
                    for feature, code in one.slice
                ),
                n_rows=int(whole.mask(one.slice).sum()),
                error=error,
                overall_error=overall,
                lift=error / overall,
                score=one.score,
                p_value=p_value,
                excess_share=(error - outside) * inside / float(half.errors.sum()),
            )
        )
    return tuple(found[: limits.top])
