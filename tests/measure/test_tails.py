"""Tails of distributions against scipy, and the rules that combine p-values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fairlead.measure import tails


@given(st.floats(0.05, 300), st.floats(0, 1000))
def test_the_incomplete_gamma_function_is_scipys(shape, x):
    found = tails.gamma_sf(shape, x)
    assert found == pytest.approx(float(scipy.special.gammaincc(shape, x)), rel=1e-9, abs=1e-300)


@given(st.floats(0.2, 60), st.integers(1, 200))
def test_the_chi_square_tail_is_scipys(ratio, df):
    found = float(tails.chi_square_sf(np.array(ratio * df), np.array(float(df))))
    true = float(scipy.stats.chi2.sf(ratio * df, df))
    assert found == pytest.approx(true, rel=1e-8 if true < 0.28 else 0.03, abs=1e-300)


def test_the_noncentral_tail_is_close_to_scipys():
    x = np.array([20.0, 40.0, 60.0])
    found = tails.chi_square_sf(x, np.full(3, 19.0), 10.0)
    np.testing.assert_allclose(found, scipy.stats.ncx2.sf(x, 19, 10), rtol=0.15)


def test_kolmogorovs_tail_is_scipys():
    x = np.linspace(0.0, 3.0, 60)
    np.testing.assert_allclose(
        tails.kolmogorov_sf(x), scipy.stats.kstwobign.sf(x), atol=1e-12, rtol=1e-9
    )


@given(st.floats(-20, 20), st.floats(30, 500))
def test_a_t_value_keeps_its_tail(t, df):
    found = tails.normal_sf(tails.student_to_normal(t, df))
    assert found == pytest.approx(float(scipy.stats.t.sf(t, df)), rel=0.08, abs=1e-12)


def test_exceedances_have_their_exact_distribution():
    rng = np.random.default_rng(0)
    ranks = rng.random((20_000, 30)).argsort(axis=1)
    is_new = ranks < 10
    best_old = np.where(is_new, -1, np.arange(30)).max(axis=1)
    beyond = 29 - best_old
    for count in (1, 2, 3):
        share = float((beyond >= count).mean())
        assert tails.exceedance_sf(count, 10, 20) == pytest.approx(share, abs=0.01)


def test_fishers_test_is_twice_the_smaller_tail():
    found = tails.fisher_exact(1, 20, 9, 25)
    tail = scipy.stats.hypergeom(45, 10, 20).cdf(1)
    assert found == pytest.approx(2 * tail)


def test_combined_p_values_are_uniform_when_nothing_happens():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=40_000)
    p_values = [scipy.stats.norm.sf(0.8 * shared + 0.6 * rng.normal(size=40_000)) for _ in range(3)]
    combined = tails.cauchy_combination(p_values, [0.5, 0.3, 0.2])
    assert (combined <= 0.01).mean() == pytest.approx(0.01, abs=0.003)


def test_a_missing_test_is_left_out_of_the_combination():
    nan = np.array([np.nan, np.nan])
    combined = tails.cauchy_combination([np.array([0.02, np.nan]), nan])
    np.testing.assert_allclose(combined, [0.02, 1.0])


def test_a_certain_nothing_does_not_drown_a_small_p_value():
    combined = tails.cauchy_combination([np.array([1e-6]), np.array([1.0])])
    assert combined[0] < 1e-5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrections_keep_the_order_and_never_lower_a_p_value(values):
    p_values = np.array(values)
    order = np.argsort(p_values, kind="stable")
    for adjusted in (tails.holm(p_values), tails.benjamini_hochberg(p_values)):
        assert (adjusted >= p_values - 1e-15).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[order]) >= -1e-15).all()


def test_holm_and_benjamini_hochberg_are_the_textbooks():
    p_values = np.array([0.01, 0.04, 0.03])
    np.testing.assert_allclose(tails.holm(p_values), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(tails.benjamini_hochberg(p_values), [0.03, 0.04, 0.04])
