"""Drift of a window: how often it alarms for nothing, what it finds, and what it lets pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import DataError
from fairlead.measure.drift import DriftLimits, DriftReference, compare
from fairlead.measure.profile import build_profile
from fairlead.measure.windows import thin

LIMITS = DriftLimits()


def reference(inputs, outputs=None):
    return DriftReference.of(build_profile(inputs, outputs or {}, ""))


def named(table):
    return {f"c{i}": np.ascontiguousarray(table[:, i]) for i in range(table.shape[1])}


def nasty(rng, n):
    """Columns that break naive tests: ties, constants, rare values, heavy tails, text, gaps."""
    text = np.array(["red", "green", "blue", "grey"], dtype=object)
    gaps = np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n))
    return {
        "constant": np.zeros(n),
        "nearly constant": (rng.random(n) < 0.003).astype(float),
        "binary": (rng.random(n) < 0.3).astype(float),
        "pixels": np.where(rng.random(n) < 0.95, 0, rng.integers(1, 17, n)).astype(float),
        "poisson": rng.poisson(3, n).astype(float),
        "lognormal": rng.lognormal(0, 2, n),
        "cauchy": rng.standard_cauchy(n),
        "mostly zero": np.where(rng.random(n) < 0.9, 0.0, rng.lognormal(size=n)),
        "gaps": gaps,
        "empty": np.full(n, np.nan),
        "rounded": np.round(rng.normal(size=n), 1),
        "text": text[rng.choice(4, n, p=[0.7, 0.2, 0.099, 0.001])],
        "ids": rng.integers(0, 10**9, n).astype(str).astype(object),
        "cities": rng.zipf(1.5, n).clip(max=10**6).astype(str).astype(object),
    }


@pytest.mark.parametrize(("n_ref", "n_cur"), [(300, 40), (1000, 200), (3000, 1000), (500, 2000)])
def test_nasty_columns_keep_the_rate_of_false_alarms(n_ref, n_cur):
    rng = np.random.default_rng(n_ref + n_cur)
    alarms = 0
    for _ in range(30):
        before = reference(nasty(rng, n_ref))
        for _ in range(4):
            alarms += compare(before, nasty(rng, n_cur), {}, LIMITS).is_drifted
    # 5 % of 120 windows are 6; more than 12 have a chance below 0.01.
    assert alarms <= 12


@pytest.mark.parametrize("n_columns", [1, 40, 200])
def test_the_rate_of_false_alarms_does_not_grow_with_the_columns(n_columns):
    rng = np.random.default_rng(n_columns)
    before = reference(named(rng.normal(size=(3000, n_columns))))
    alarms = sum(
        compare(before, named(rng.normal(size=(300, n_columns))), {}, LIMITS).is_drifted
        for _ in range(40)
    )
    assert alarms <= 6


def windows(rng, n, change, repeats):
    for _ in range(repeats):
        table = rng.normal(size=(n, 40))
        change(table)
        yield named(table)


@pytest.fixture(scope="module")
def normal40():
    return reference(named(np.random.default_rng(0).normal(size=(50_000, 40))))


def test_a_tenth_of_a_deviation_in_one_of_forty_columns_is_found_in_ten_thousand_rows(normal40):
    def shift(table):
        table[:, 7] += 0.1

    found = [
        compare(normal40, window, {}, LIMITS).columns[0]
        for window in windows(np.random.default_rng(1), 10_000, shift, 10)
    ]
    assert all(column.is_drifted and column.column == "c7" for column in found)


def test_a_fifth_of_a_deviation_is_found_in_a_thousand_rows(normal40):
    def shift(table):
        table[:, 7] += 0.2

    rng = np.random.default_rng(2)
    found = [compare(normal40, w, {}, LIMITS).is_drifted for w in windows(rng, 1000, shift, 40)]
    assert np.mean(found) >= 0.95


def test_a_trifle_in_every_column_is_no_drift_however_many_rows(normal40):
    def shift(table):
        table += 0.01

    limits = DriftLimits(max_rows=100_000)
    rng = np.random.default_rng(3)
    assert not any(
        compare(normal40, window, {}, limits).is_drifted
        for window in windows(rng, 100_000, shift, 3)
    )


def test_a_larger_smallest_effect_lets_a_real_shift_pass(normal40):
    def shift(table):
        table[:, 0] += 0.3

    [window] = windows(np.random.default_rng(4), 5000, shift, 1)
    assert compare(normal40, window, {}, LIMITS).is_drifted
    assert not compare(normal40, window, {}, DriftLimits(min_effect=0.5)).is_drifted


def test_a_broken_correlation_with_equal_marginals_is_found_and_named():
    rng = np.random.default_rng(5)

    def rows(n, r):
        a = rng.normal(size=n)
        b = r * a + np.sqrt(1 - r * r) * rng.normal(size=n)
        return {"a": np.exp(a), "b": b, "c": rng.normal(size=n)}

    before = reference(rows(5000, 0.6))
    broken = [compare(before, rows(1000, 0.0), {}, LIMITS) for _ in range(20)]
    assert all(drift.relations for drift in broken)
    assert {broken[0].relations[0].first, broken[0].relations[0].second} == {"a", "b"}
    assert not any(column.is_drifted for column in broken[0].columns)


def test_heavy_tails_do_not_break_the_test_of_correlations():
    rng = np.random.default_rng(6)
    before = reference({f"c{i}": rng.standard_cauchy(3000) for i in range(10)})
    alarms = sum(
        bool(
            compare(
                before, {f"c{i}": rng.standard_cauchy(300) for i in range(10)}, {}, LIMITS
            ).relations
        )
        for _ in range(60)
    )
    assert alarms <= 3


def test_columns_come_in_order_of_effect():
    rng = np.random.default_rng(7)
    before = reference(named(rng.normal(size=(5000, 5))))
    table = rng.normal(size=(2000, 5))
    table[:, 1] += 0.5
    table[:, 3] += 1.5
    drift = compare(before, named(table), {}, LIMITS)
    assert [column.column for column in drift.columns if column.is_drifted] == ["c3", "c1"]
    assert drift.columns[0].effect == pytest.approx(1.5, abs=0.2)


def test_a_change_of_spread_alone_is_found():
    rng = np.random.default_rng(8)
    before = reference({"a": rng.normal(size=5000)})
    assert compare(before, {"a": 1.5 * rng.normal(size=1000)}, {}, LIMITS).is_drifted


def test_a_constant_that_changes_is_found():
    before = reference({"a": np.zeros(1000)})
    assert compare(before, {"a": np.full(100, 3.0)}, {}, LIMITS).is_drifted
    assert not compare(before, {"a": np.zeros(100)}, {}, LIMITS).is_drifted


def test_one_odd_row_in_a_constant_column_is_chance():
    before = reference({"a": np.zeros(500)})
    odd = np.zeros(500)
    odd[3] = 5.0
    assert not compare(before, {"a": odd}, {}, LIMITS).is_drifted


def test_a_column_that_lost_its_values_is_found():
    rng = np.random.default_rng(9)
    before = reference({"a": rng.normal(size=2000), "b": rng.normal(size=2000)})
    window = {"a": np.full(300, np.nan), "b": rng.normal(size=300)}
    [lost, _] = compare(before, window, {}, LIMITS).columns
    assert (lost.column, lost.method, lost.missing_now) == ("a", "missing-values", 1.0)
    assert lost.is_drifted


def test_unseen_categories_are_found_and_shown():
    rng = np.random.default_rng(10)
    colours = np.array(["red", "green"], dtype=object)
    before = reference({"colour": colours[rng.integers(0, 2, 3000)]})
    now = colours[rng.integers(0, 2, 500)]
    now[:40] = "ultraviolet"
    [column] = compare(before, {"colour": now}, {}, LIMITS).columns
    assert column.is_drifted
    assert column.strange_examples == ("ultraviolet",)
    assert column.strange_ratio == pytest.approx(0.08)


def test_a_shifted_prediction_is_told_from_its_inputs():
    rng = np.random.default_rng(11)
    before = reference({"a": rng.normal(size=3000)}, {"prediction": rng.integers(0, 3, 3000)})
    drift = compare(
        before, {"a": rng.normal(size=800)}, {"prediction": np.zeros(800, np.int64)}, LIMITS
    )
    assert [c.column for c in drift.columns if c.is_drifted] == ["prediction"]


def test_too_few_rows_have_no_verdict():
    before = reference({"a": np.arange(100.0)})
    assert compare(before, {"a": np.arange(29.0)}, {}, LIMITS) is None
    assert compare(reference({"a": np.arange(20.0)}), {"a": np.arange(90.0)}, {}, LIMITS) is None


def test_text_in_a_numeric_column_is_refused_with_the_row():
    before = reference({"a": np.arange(100.0)})
    window = {"a": np.array([1.0, None, "wat", *range(40)], dtype=object)}
    with pytest.raises(DataError, match=r"column `a` holds 'wat' in row 2"):
        compare(before, window, {}, LIMITS)


def test_a_column_that_the_window_lacks_is_said():
    before = reference({"a": np.arange(100.0), "b": np.arange(100.0)})
    assert compare(before, {"a": np.arange(100.0)}, {}, LIMITS).skipped == ("b",)


def test_other_number_types_compare_like_floats():
    rng = np.random.default_rng(12)
    whole = rng.integers(0, 50, 2000)
    before = reference({"a": whole})
    for dtype in (np.float32, np.int16, np.float64):
        assert not compare(before, {"a": whole[:500].astype(dtype)}, {}, LIMITS).is_drifted


@given(st.integers(1, 5000), st.integers(1, 500))
def test_thinning_keeps_order_and_reaches_everything(n_rows, most):
    rows = thin(n_rows, most)
    if n_rows <= most:
        assert rows is None
    else:
        assert len(rows) == most
        assert (np.diff(rows) >= 0).all()
        assert rows[0] >= 0
        assert rows[-1] < n_rows


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=30, max_size=60),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=30, max_size=60),
)
def test_any_numbers_give_a_verdict_with_valid_p_values(before, now):
    with np.errstate(all="ignore"):
        ready = reference({"a": np.array(before)})
        drift = compare(ready, {"a": np.array(now)}, {}, LIMITS)
    [column] = drift.columns
    assert 0 <= column.p_value <= 1
