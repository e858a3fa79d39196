import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.measure.simulation import POLICIES, SimulatedLoad, erlang_c, pooled, simulate


def exponential(mean_ms=10.0):
    return np.random.default_rng(0).exponential(mean_ms, 200_000)


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.7), (4, 0.8), (16, 0.85)])
def test_the_central_queue_waits_as_long_as_queueing_theory_says(servers, busy):
    """M/M/k: mean wait = C(k, a) / (kμ - λ), Erlang 1917."""
    load = simulate(
        exponential(), rate_rps=busy * servers * 100, replicas=servers, policy="central-queue",
        requests=150_000,
    )  # fmt: skip
    wait = erlang_c(busy * servers, servers) * 10 / (servers * (1 - busy))
    assert load.latency_ms.mean() - 10 == pytest.approx(wait, rel=0.12)


def test_p99_of_one_server_is_that_of_an_m_m_1_queue():
    load = simulate(
        exponential(), rate_rps=50, replicas=1, policy="central-queue", requests=150_000
    )
    assert load.percentile(99) == pytest.approx(math.log(100) * 10 / 0.5, rel=0.1)


def test_erlang_c_of_one_server_is_its_utilisation():
    assert erlang_c(0.6, 1) == pytest.approx(0.6)


def test_policies_rank_as_measured():
    """16 replicas, 4 gateways, 85 % load, CV 1.3: informed policies have shorter tails."""
    spread = math.log(1 + 1.3**2)
    sample = np.random.default_rng(1).lognormal(math.log(20) - spread / 2, spread**0.5, 100_000)
    p99 = {
        policy: simulate(
            sample, rate_rps=680, replicas=16, policy=policy, gateways=4, requests=40_000
        ).percentile(99)
        for policy in POLICIES
    }
    assert list(p99) == sorted(p99, key=p99.get)
    assert p99["central-queue"] == pytest.approx(130, rel=0.2)
    assert p99["least-outstanding"] == pytest.approx(229, rel=0.25)


@pytest.mark.parametrize("policy", POLICIES)
def test_too_much_load_is_told_apart(policy):
    load = simulate(exponential(), rate_rps=250, replicas=2, policy=policy, requests=5000)
    assert not load.is_stable
    assert load.percentile(99) == math.inf
    assert load.utilisation > 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_single_replica_serves_alike_under_every_policy(policy):
    first = simulate(exponential(), rate_rps=60, replicas=1, policy=policy, requests=3000)
    second = simulate(exponential(), rate_rps=60, replicas=1, policy="central-queue", requests=3000)
    np.testing.assert_allclose(first.latency_ms, second.latency_ms)


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(list(POLICIES)),
    replicas=st.integers(1, 9),
    slots=st.integers(1, 3),
    gateways=st.integers(1, 4),
    busy=st.floats(0.05, 0.9),
)
def test_no_request_is_faster_than_its_service(policy, replicas, slots, gateways, busy):
    sample = np.array([2.0, 5.0, 11.0])
    load = simulate(
        sample, rate_rps=busy * replicas * slots * 1e3 / 6, replicas=replicas, policy=policy,
        requests=1500, slots=slots, gateways=gateways, seed=3,
    )  # fmt: skip
    assert load.latency_ms.min() >= 2.0 - 1e-6
    assert load.utilisation == pytest.approx(busy, rel=0.01)


def test_slots_share_the_queue_of_their_replica():
    sample = np.full(10, 10.0)
    many = simulate(sample, rate_rps=300, replicas=1, slots=4, policy="round-robin", requests=5000)
    one = simulate(sample, rate_rps=300, replicas=4, policy="central-queue", requests=5000)
    np.testing.assert_allclose(many.latency_ms, one.latency_ms)


def test_runs_are_pooled_and_one_growing_queue_spoils_them():
    calm = SimulatedLoad(np.ones(10), 0.5, True)
    growing = SimulatedLoad(np.full(10, 3.0), 0.7, False)
    assert pooled([calm, calm]).percentile(50) == 1.0
    both = pooled([calm, growing])
    assert not both.is_stable
    assert both.utilisation == pytest.approx(0.6)
