"""Control endpoints: token, live traffic split, shadow, outcomes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fairlead.backends.endpoint import EndpointClient
from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import DataError, UnauthenticatedError, UsageError
from fairlead.serve.inference.traffic import Traffic

X = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)


@pytest.fixture
def client(two_arms):
    with two_arms.client() as found:
        found.set_traffic(TrafficSplit(weights={"baseline": 0.75, "candidate": 0.25}))
        yield found


def arms_of(client, n):
    return Counter(client.infer({"x": X}).arm for _ in range(n))


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_control_needs_the_token(two_arms, token):
    with EndpointClient(two_arms.endpoint.url, "wines", token) as stranger:
        for call in (stranger.traffic, stranger.outcomes, stranger.describe):
            with pytest.raises(UnauthenticatedError, match="401"):
                call()
        with pytest.raises(UnauthenticatedError, match="401"):
            stranger.set_traffic(TrafficSplit(weights={"baseline": 1.0}))


def test_the_service_describes_both_arms(client, two_arms, wines, wines_candidate):
    described = client.describe()
    assert described == two_arms.endpoint
    assert described.arms == {"baseline": wines.digest, "candidate": wines_candidate.digest}
    assert client.metadata()["versions"] == [wines.version, wines_candidate.version]


def test_shares_follow_the_weights_and_change_live(client):
    found = arms_of(client, 400)
    assert 60 <= found["candidate"] <= 140  # 100 expected, 4.6 standard deviations either way
    client.set_traffic(TrafficSplit(weights={"baseline": 0.0, "candidate": 1.0}))
    assert arms_of(client, 20) == {"candidate": 20}
    client.set_traffic(TrafficSplit(weights={"baseline": 1.0}))
    assert arms_of(client, 20) == {"baseline": 20}


def test_a_version_can_be_asked_for_whatever_the_weights(client, wines_candidate):
    client.set_traffic(TrafficSplit(weights={"baseline": 1.0}))
    answer = client.infer({"x": X}, version=wines_candidate.version)
    assert (answer.arm, answer.version) == ("candidate", wines_candidate.version)


@pytest.mark.parametrize(
    "split",
    [
        TrafficSplit(weights={"baseline": 0.5}),
        TrafficSplit(weights={"baseline": 1.5, "candidate": -0.5}),
        TrafficSplit(weights={"baseline": 1.0, "other": 0.0}),
        TrafficSplit(weights={"baseline": 1.0}, shadow="other"),
        TrafficSplit(weights={"baseline": 0.5, "candidate": 0.5}, shadow="candidate"),
        TrafficSplit(weights={}),
    ],
)
def test_a_split_that_does_not_fit_is_refused_and_changes_nothing(client, split):
    before = client.traffic()
    with pytest.raises(DataError, match="400"):
        client.set_traffic(split)
    assert client.traffic() == before


def test_shadow_sees_every_request_and_answers_none(client):
    client.set_traffic(TrafficSplit(weights={"baseline": 1.0}, shadow="candidate"))
    start = client.outcomes(limit=10_000).next
    assert arms_of(client, 30) == {"baseline": 30}
    client.set_traffic(TrafficSplit(weights={"baseline": 1.0}))
    client.infer({"x": X})
    page = client.outcomes(after=start, limit=1000)
    arms = Counter(outcome.arm for outcome in page.outcomes)
    assert arms == {"baseline": 31, "candidate": 30}
    ids = [outcome.id for outcome in page.outcomes if outcome.arm == "candidate"]
    assert set(ids) <= {outcome.id for outcome in page.outcomes if outcome.arm == "baseline"}


def test_outcomes_come_in_order_and_page_by_page(client):
    start = client.outcomes(limit=10_000).next
    for i in range(5):
        client.infer({"x": X}, id=f"o{i}")
    client.infer({"x": np.repeat(X, 3, axis=0)}, id="three")
    with pytest.raises(DataError):
        client.infer({"x": np.ones((1, 3), np.float32)}, id="bad")
    first = client.outcomes(after=start, limit=4)
    second = client.outcomes(after=first.next, limit=100)
    found = [*first.outcomes, *second.outcomes]
    assert [outcome.id for outcome in found] == [*[f"o{i}" for i in range(5)], "three", "bad"]
    assert [outcome.seq for outcome in found] == list(range(start + 1, start + 8))
    assert [outcome.status for outcome in found] == [200] * 6 + [400]
    assert [outcome.prediction for outcome in found] == [1] * 5 + [[1, 1, 1], None]
    assert all(outcome.total_ms >= outcome.run_ms > 0 for outcome in found[:6])
    assert client.outcomes(after=second.next).outcomes == ()
    assert client.outcomes(after=second.next).next == second.next


def test_probes_are_not_remembered(client):
    start = client.outcomes(limit=10_000).next
    client.infer({"x": X}, is_probe=True)
    assert client.outcomes(after=start).outcomes == ()


def test_choice_by_chance_needs_known_arms():
    with pytest.raises(UsageError, match="no arm"):
        Traffic(("baseline",), TrafficSplit(weights={"candidate": 1.0}))
