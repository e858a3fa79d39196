import math

import numpy as np
import pytest

from fairlead.measure.exceedance import ExceedanceTest

LIMIT = math.log(20)


def run(rng, n, slow=1.0, weight=0.1, stall=None, gap_s=0.02, **options):
    """Play latencies against thresholds of 500 baseline values; return the peak of log e."""
    thresholds = ExceedanceTest.thresholds_of(rng.lognormal(2, 0.5, 500))
    test = ExceedanceTest(thresholds, margin=1.5, **options)
    own = rng.random(n) < weight
    values = rng.lognormal(2, 0.5, n) * np.where(own, slow, 1.0)
    if stall is not None:
        own, values = stall(own, values)
    peak = 0.0
    for index in range(n):
        test.update(values[index], weight, is_candidate=bool(own[index]), at_s=index * gap_s)
        if index % 20 == 0:
            peak = max(peak, test.log_e)
    return peak, test


def test_equal_arms_raise_no_alarm():
    rng = np.random.default_rng(0)
    peaks = [run(rng, 2000)[0] for _ in range(60)]
    assert np.mean(np.array(peaks) >= LIMIT) <= 0.05


def test_a_candidate_that_takes_half_again_as_long_is_found():
    assert run(np.random.default_rng(1), 4000, slow=1.5)[0] >= LIMIT


def test_a_candidate_within_the_tolerance_is_left_alone():
    peak, test = run(np.random.default_rng(2), 6000, slow=1.2, tolerance_ratio=0.2)
    assert peak < LIMIT
    assert test.safe_log_e > 0


def test_milliseconds_of_tolerance_are_taken_off_the_candidate():
    test = ExceedanceTest((10.0,) * 5, margin=1.5, tolerance=2.0)
    assert not test.update(11.9, 0.5, is_candidate=True, at_s=0.0)
    assert test.update(12.1, 0.5, is_candidate=True, at_s=1.0)
    assert test.update(11.9, 0.5, is_candidate=False, at_s=2.0)


def test_stalls_that_delay_many_requests_of_one_arm_raise_no_alarm():
    """Ten requests of one arm are held up together, the arm being drawn by its share."""
    rng = np.random.default_rng(3)

    def stall(own, values):
        for begin in range(0, len(own) - 10, 200):
            part = slice(begin, begin + 10)
            own[part] = rng.random() < 0.1
            values[part] += 100.0
        return own, values

    peaks = [run(rng, 2000, stall=stall, gap_s=0.001)[0] for _ in range(60)]
    assert np.mean(np.array(peaks) >= LIMIT) <= 0.05


def test_a_faster_candidate_is_shown_safe():
    assert run(np.random.default_rng(4), 3000, slow=0.5, weight=0.5)[1].safe_log_e >= LIMIT


def test_it_goes_on_from_its_state():
    _, test = run(np.random.default_rng(5), 500, slow=2.0)
    again = ExceedanceTest(test.thresholds, margin=1.5, state=test.state)
    assert again.log_e == pytest.approx(test.log_e)
    assert again.safe_log_e == pytest.approx(test.safe_log_e)
