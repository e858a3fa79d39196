"""Error budgets: what is left, and how fast it burns."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.core.errors import ConfigError
from fairlead.measure.slo import ServiceLevels, error_budget

LEVELS = ServiceLevels(availability=0.99)


def budget(ages_s, bad):
    return error_budget(
        "availability", 0.99, np.asarray(ages_s, float), np.asarray(bad, bool), levels=LEVELS
    )


def rate(found, window_s):
    return next(r for r in found.burn_rates if r.window_s == window_s)


def test_the_budget_counts_requests_not_minutes():
    ages = np.concatenate([np.full(1000, 60.0), np.full(10, 86_000.0)])
    bad = np.concatenate([np.zeros(1000), np.ones(10)])
    found = budget(ages, bad)
    assert found.left_ratio == pytest.approx(1 - 10 / 10.1)
    assert rate(found, 300).burn_rate == 0
    assert rate(found, 86_400).burn_rate == pytest.approx(10 / 1010 / 0.01)


def test_a_fast_burn_fires_when_it_lasts_in_both_windows():
    ages = np.linspace(0, 3600, 1000)
    found = budget(ages, np.arange(1000) % 4 == 0)
    assert "page 14.4x over 1h and 5m" in found.firing


def test_a_burn_that_is_over_fires_no_page():
    ages = np.linspace(0, 3600, 1000)
    found = budget(ages, (np.arange(1000) % 2 == 0) & (ages > 1800))
    assert not any(rule.startswith("page") for rule in found.firing)


def test_a_single_error_in_a_quiet_hour_wakes_nobody():
    assert budget([10.0, 30.0], [True, False]).firing == ()


def test_no_requests_leave_the_budget_whole():
    found = budget([], [])
    assert (found.left_ratio, found.firing) == (1.0, ())


def test_a_promise_of_everything_is_refused():
    with pytest.raises(ConfigError, match="availability"):
        ServiceLevels.parse({"availability": 1.0})
