"""Slices: a planted one is found, noise gives none, and the search scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairlead.measure.slices import CodedFeature, SliceLimits, find_slices


def features(rng, n_rows, n_features, n_values=6):
    values = tuple(str(value) for value in range(n_values))
    return [
        CodedFeature(f"f{i}", rng.integers(0, n_values, n_rows).astype(np.int32), values)
        for i in range(n_features)
    ]


def planted(rng, coded, conditions, *, base=0.1, inside=0.5):
    mask = np.ones(len(coded[0].codes), dtype=bool)
    for feature, code in conditions:
        mask &= coded[feature].codes == code
    return (rng.random(len(mask)) < np.where(mask, inside, base)).astype(float)


def test_a_planted_pair_is_the_worst_slice():
    rng = np.random.default_rng(0)
    coded = features(rng, 4000, 12)
    found = find_slices(coded, planted(rng, coded, [(3, 2), (7, 4)]), SliceLimits())
    assert found[0].conditions == ("f3: 2", "f7: 4")
    assert found[0].lift > 2.5
    assert found[0].p_value < 1e-4


def test_a_planted_single_condition_is_not_dressed_up_with_another():
    rng = np.random.default_rng(1)
    coded = features(rng, 4000, 10)
    found = find_slices(coded, planted(rng, coded, [(5, 1)]), SliceLimits())
    assert [one.conditions for one in found] == [("f5: 1",)]


def test_a_planted_triple_needs_level_three():
    rng = np.random.default_rng(2)
    coded = features(rng, 20_000, 10, n_values=4)
    errors = planted(rng, coded, [(0, 1), (4, 2), (8, 3)], inside=0.9)
    found = find_slices(coded, errors, SliceLimits(max_level=3))
    assert found[0].conditions == ("f0: 1", "f4: 2", "f8: 3")


def test_a_feature_that_is_not_combined_stands_alone():
    rng = np.random.default_rng(7)
    coded = features(rng, 4000, 6)
    errors = planted(rng, coded, [(2, 1), (4, 3)])
    coded[2] = replace(coded[2], is_combined=False)
    found = find_slices(coded, errors, SliceLimits())
    assert found
    assert all(len(one.conditions) == 1 or "f2" not in str(one.conditions) for one in found)


@pytest.mark.parametrize("draw", ["errors", "costs"])
def test_noise_gives_no_slice(draw):
    rng = np.random.default_rng(3)
    alarms = 0
    for seed in range(60):
        coded = features(rng, 800, 15)
        errors = (rng.random(800) < 0.08).astype(float)
        if draw == "costs":
            errors = rng.exponential(size=800) ** 2
        alarms += bool(find_slices(coded, errors, SliceLimits(seed=seed)))
    assert alarms <= 6


def test_a_perfect_model_and_too_few_rows_have_no_slice():
    rng = np.random.default_rng(4)
    coded = features(rng, 500, 5)
    assert find_slices(coded, np.zeros(500), SliceLimits()) == ()
    few = [CodedFeature(f.name, f.codes[:50], f.values) for f in coded]
    assert find_slices(few, np.ones(50), SliceLimits()) == ()


def test_a_large_table_is_searched_to_level_three():
    rng = np.random.default_rng(5)
    coded = features(rng, 100_000, 20, n_values=8)
    errors = planted(rng, coded, [(3, 2), (7, 4)])
    found = find_slices(coded, errors, SliceLimits(max_level=3, min_rows=500))
    assert found[0].conditions == ("f3: 2", "f7: 4")


def test_the_same_seed_finds_the_same():
    rng = np.random.default_rng(6)
    coded = features(rng, 2000, 8)
    errors = planted(rng, coded, [(1, 1)])
    assert find_slices(coded, errors, SliceLimits()) == find_slices(coded, errors, SliceLimits())
