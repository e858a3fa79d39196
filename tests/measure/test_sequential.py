import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.measure.sequential import (
    HARM_RATIOS,
    DropTest,
    FailureTest,
    LimitTest,
    RateBound,
    SampleRatioTest,
    average_log_e,
    bet_increments,
    e_value,
    harm_test,
    safety_test,
)

ALPHA = 0.05
LIMIT = math.log(1 / ALPHA)


def log_e_paths(is_candidate, weights, ratios, null_ratio=1.0, prior=None):
    """Log e-values after each failure, shape (runs, failures)."""
    mine, theirs = bet_increments(weights, ratios, null_ratio)
    steps = np.where(is_candidate[..., None], mine, theirs)
    shares = np.full(len(ratios), 1 / len(ratios)) if prior is None else np.asarray(prior)
    return np.logaddexp.reduce(np.cumsum(steps, axis=-2) + np.log(shares), axis=-1)


def candidate_failures(rng, runs, failures, weights, ratio=1.0):
    odds = weights * ratio / (weights * ratio + 1 - weights)
    return rng.random((runs, failures)) < odds


# Calibration: the alarm is false at most alpha of the time, however often one looks


def test_false_alarms_stay_below_alpha_when_the_arms_are_alike():
    rng = np.random.default_rng(0)
    weights = np.full(600, 0.1)
    paths = log_e_paths(candidate_failures(rng, 4000, 600, weights), weights, HARM_RATIOS)
    assert (paths.max(axis=1) >= LIMIT).mean() <= ALPHA


def test_false_alarms_stay_below_alpha_when_the_share_grows_on_the_way():
    rng = np.random.default_rng(1)
    weights = np.repeat([0.05, 0.25, 0.5, 0.9], 150)
    paths = log_e_paths(candidate_failures(rng, 4000, 600, weights), weights, HARM_RATIOS)
    assert (paths.max(axis=1) >= LIMIT).mean() <= ALPHA


def test_an_incident_that_hits_both_arms_is_no_evidence():
    rng = np.random.default_rng(2)
    rate = np.full(20_000, 0.01)
    rate[5000:8000] = 0.08
    alarms = 0
    for _ in range(300):
        is_candidate = rng.random(20_000) < 0.1
        failed = rng.random(20_000) < rate
        path = log_e_paths(is_candidate[failed][None], np.full(failed.sum(), 0.1), HARM_RATIOS)
        alarms += path.max() >= LIMIT
    assert alarms / 300 <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 300)


def test_safety_is_shown_at_most_alpha_of_the_time_for_a_candidate_at_the_margin():
    rng = np.random.default_rng(3)
    test = safety_test(1.5)
    weights = np.full(600, 0.3)
    failing = candidate_failures(rng, 4000, 600, weights, ratio=1.5)
    paths = log_e_paths(failing, weights, test.ratios, 1.5, (0.1, 0.1, 0.2, 0.6))
    assert (paths.max(axis=1) >= LIMIT).mean() <= ALPHA


# Power: as quick as the published comparison


def detection(rng, candidate_rate, ratios=HARM_RATIOS, null=1.0, prior=None, requests=200_000):
    found = []
    for _ in range(60):
        is_candidate = rng.random(requests) < 0.1
        failed = rng.random(requests) < np.where(is_candidate, candidate_rate, 0.01)
        own = is_candidate[failed]
        path = log_e_paths(own[None], np.full(len(own), 0.1), ratios, null, prior)[0]
        hits = np.flatnonzero(path >= LIMIT)
        at = np.flatnonzero(failed)[hits[0]] if len(hits) else requests - 1
        found.append(is_candidate[: at + 1].sum())
    return float(np.median(found))


def test_doubled_errors_are_found_after_some_900_canary_requests():
    assert 500 < detection(np.random.default_rng(4), 0.02) < 1300


def test_fivefold_errors_are_found_after_some_100_canary_requests():
    assert 50 < detection(np.random.default_rng(5), 0.05) < 160


def test_an_equal_candidate_is_shown_safe_after_some_3000_canary_requests():
    test = safety_test(1.5)
    prior = (0.1, 0.1, 0.2, 0.6)
    found = detection(np.random.default_rng(6), 0.01, test.ratios, 1.5, prior)
    assert 1800 < found < 4500


# Properties


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=7),
    honesty=st.floats(0.0, 1.0),
)
def test_wealth_does_not_grow_on_average_under_the_null(weights, honesty):
    """Exact expectation over all outcomes, with shares that change at every failure."""
    expected = 0.0
    for outcome in itertools.product((False, True), repeat=len(weights)):
        test, chance = harm_test(), 1.0
        for weight, is_candidate in zip(weights, outcome, strict=True):
            test.update(weight, is_candidate=is_candidate)
            own = weight * honesty
            chance *= own if is_candidate else 1 - own
        expected += chance * e_value(test.log_e)
    assert expected <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    weight=st.floats(0.05, 0.95),
    margin=st.floats(1.05, 5.0),
    worse=st.floats(1.0, 10.0),
    n=st.integers(1, 30),
)
def test_no_wealth_is_won_for_a_candidate_beyond_the_margin(weight, margin, worse, n):
    ratio = margin * worse
    own = weight * ratio / (weight * ratio + 1 - weight)
    expected = 0.0
    for mine in range(n + 1):
        test = safety_test(margin)
        for index in range(n):
            test.update(weight, is_candidate=index < mine)
        expected += math.comb(n, mine) * own**mine * (1 - own) ** (n - mine) * e_value(test.log_e)
    assert expected <= 1 + 1e-9


@given(st.lists(st.booleans(), max_size=40))
def test_the_order_of_failures_at_one_share_does_not_matter(failures):
    first, second = harm_test(), harm_test()
    for is_candidate in failures:
        first.update(0.2, is_candidate=is_candidate)
    for is_candidate in reversed(failures):
        second.update(0.2, is_candidate=is_candidate)
    assert first.log_e == pytest.approx(second.log_e, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1, max_size=20))
def test_a_test_goes_on_from_its_state(failures):
    whole, first = harm_test(), harm_test()
    half = len(failures) // 2
    for weight, own in failures:
        whole.update(weight, is_candidate=own)
    for weight, own in failures[:half]:
        first.update(weight, is_candidate=own)
    second = harm_test(first.state)
    for weight, own in failures[half:]:
        second.update(weight, is_candidate=own)
    assert second.log_e == pytest.approx(whole.log_e)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 12), own=st.floats(0, 1), most=st.integers(1, 3))
def test_a_burst_wins_nothing_under_the_null(n, own, most):
    chance = 0.3 * own
    expected = 0.0
    for mine in range(n + 1):
        test = harm_test()
        test.update_burst([(0.3, index < mine) for index in range(n)], most)
        weight = math.comb(n, mine) * chance**mine * (1 - chance) ** (n - mine)
        expected += weight * e_value(test.log_e)
    assert expected <= 1 + 1e-9


def test_all_traffic_on_one_arm_is_no_evidence():
    test = harm_test()
    for weight in (0.0, 1.0):
        test.update(weight, is_candidate=True)
        test.update_burst([(weight, True)], 2)
    assert test.log_e == pytest.approx(0)


def test_alternatives_on_both_sides_of_the_null_are_refused():
    with pytest.raises(ValueError, match="one side"):
        FailureTest((0.5, 2.0))


def test_wealth_beyond_what_a_float_holds_is_capped():
    test = harm_test()
    for _ in range(2000):
        test.update(0.01, is_candidate=True)
    assert math.isfinite(e_value(test.log_e))


# Joint alarms


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6))
def test_the_joint_alarm_is_never_later_than_separate_ones(log_es):
    separate = max(log_es) >= math.log(len(log_es) / ALPHA)
    joint = average_log_e(log_es) >= LIMIT - 1e-9
    assert joint or not separate


def test_the_mean_of_nothing_but_losses_is_zero():
    assert average_log_e([-math.inf, -math.inf]) == -math.inf


# The bound for candidates that never fail


def test_the_bound_covers_the_true_rate_at_all_times():
    rng = np.random.default_rng(7)
    bound = RateBound(ALPHA, expected_rate=0.01)
    for rate in (0.005, 0.03):
        missed = 0
        for _ in range(200):
            failures = np.cumsum(rng.random(3000) < rate)
            looks = range(99, 3000, 100)
            missed += any(bound.upper(int(failures[n]), n + 1) < rate for n in looks)
        assert missed / 200 <= ALPHA


def test_the_bound_falls_below_one_percent_without_a_failure_in_450_requests():
    bound = RateBound(ALPHA, expected_rate=0.01)
    assert bound.upper(0, 450) < 0.01 < bound.upper(0, 300)


@pytest.mark.parametrize(("failures", "total"), [(0, 0), (5, 5)])
def test_the_bound_is_one_when_nothing_is_excluded(failures, total):
    assert RateBound(ALPHA).upper(failures, total) == 1.0


def test_the_bound_of_very_few_requests_excludes_nothing():
    assert RateBound(0.001, expected_rate=0.5).upper(0, 1) > 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(1, 500))
def test_the_bound_lies_above_the_observed_rate(failures, more):
    upper = RateBound(ALPHA).upper(failures, failures + more)
    assert failures / (failures + more) < upper <= 1.0


@settings(max_examples=40, deadline=None)
@given(limit=st.floats(0.005, 0.5), excess=st.floats(1.0, 2.0), n=st.integers(1, 60))
def test_no_wealth_is_won_against_a_rate_at_or_above_the_limit(limit, excess, n):
    rate = min(limit * excess, 1.0)
    test = LimitTest(limit)
    expected = sum(
        math.comb(n, k) * rate**k * (1 - rate) ** (n - k) * e_value(test.log_e(k, n))
        for k in range(n + 1)
    )
    assert expected <= 1 + 1e-9


def test_five_hundred_good_answers_show_a_rate_below_one_percent():
    assert LimitTest(0.01).log_e(0, 500) > LIMIT > LimitTest(0.01).log_e(0, 300)


def test_failures_count_against_a_low_rate():
    assert LimitTest(0.01).log_e(10, 500) < 0


# Paired differences


@settings(max_examples=40, deadline=None)
@given(limit=st.floats(0.01, 0.3), n=st.integers(1, 25), gain=st.floats(0.0, 0.5))
def test_no_wealth_is_won_when_quality_falls_by_the_limit(limit, n, gain):
    """Differences of 1 with chance p and of 0 otherwise, with a mean at or above the limit."""
    chance = min(limit + gain, 1.0)
    expected = 0.0
    for worse in range(n + 1):
        test = DropTest(limit)
        for index in range(n):
            test.update(1.0 if index < worse else 0.0)
        weight = math.comb(n, worse) * chance**worse * (1 - chance) ** (n - worse)
        expected += weight * e_value(test.log_e)
    assert expected <= 1 + 1e-9


def test_three_hundred_equal_answers_show_a_drop_below_two_points():
    test = DropTest(0.02)
    for _ in range(300):
        test.update(0.0)
    assert test.log_e > LIMIT
    assert DropTest(0.02, test.state).log_e == pytest.approx(test.log_e)


# Sample ratio


def srm_peak(rng, weights, true_weights):
    test, peak = SampleRatioTest(), 0.0
    for weight, true in zip(weights, true_weights, strict=True):
        test.update(weight, is_candidate=rng.random() < true)
        peak = max(peak, test.log_e)
    return peak


def test_a_split_as_configured_raises_no_alarm_even_when_it_changes():
    rng = np.random.default_rng(8)
    weights = np.repeat([0.05, 0.25, 0.5], 500)
    alarms = [srm_peak(rng, weights, weights) >= LIMIT for _ in range(150)]
    assert np.mean(alarms) <= ALPHA


def test_lost_answers_of_one_arm_are_found():
    rng = np.random.default_rng(9)
    weights = np.full(4000, 0.5)
    assert srm_peak(rng, weights, weights * 0.8) >= math.log(1000)


def test_the_sample_ratio_test_goes_on_from_its_state():
    test = SampleRatioTest()
    for index in range(50):
        test.update(0.2, is_candidate=index % 3 == 0)
    again = SampleRatioTest(state=test.state)
    for one in (test, again):
        one.update(0.2, is_candidate=True)
        one.update(1.0, is_candidate=True)
    assert again.log_e == pytest.approx(test.log_e)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=8))
def test_the_sample_ratio_wealth_is_fair(weights):
    expected = 0.0
    for outcome in itertools.product((False, True), repeat=len(weights)):
        test, chance = SampleRatioTest(concentration=5.0), 1.0
        for weight, own in zip(weights, outcome, strict=True):
            test.update(weight, is_candidate=own)
            chance *= weight if own else 1 - weight
        expected += chance * e_value(test.log_e)
    assert expected == pytest.approx(1.0)
