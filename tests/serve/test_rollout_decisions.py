"""What a rollout decides, against a server in memory."""

import json
import subprocess
import sys

import pytest

from fairlead.core.endpoint import Endpoint, TrafficSplit
from fairlead.core.errors import ConfigError, ConflictError, EndpointError, UsageError
from fairlead.serve.rollout import (
    LiveTraffic,
    RolloutConfig,
    RolloutJournal,
    roll_out,
    state_report,
    steer,
)
from tests.fakes.rollout_server import ENDPOINT, FakeArm, FakeServer, FakeTraffic


@pytest.fixture
def journal(tmp_path):
    return RolloutJournal(tmp_path / "rollouts", "wines")


def decide(journal, server, *, rows=0, traffic=None, **settings):
    config = RolloutConfig.parse(settings)
    return roll_out(
        ENDPOINT,
        config,
        client=server,
        traffic=traffic or FakeTraffic(server, rows=rows),
        journal=journal,
        has_labels=rows > 0,
        now=server.clock,
    )


def test_an_equal_candidate_is_promoted_through_growing_shares(journal):
    server = FakeServer()
    outcome = decide(journal, server)
    assert outcome.noun.action == "promote"
    assert server.splits == [0.1, 0.25, 0.5, 1.0]
    assert not outcome.is_refused


def test_a_failing_candidate_is_rolled_back_at_once(journal):
    server = FakeServer(candidate=FakeArm(error_ratio=0.5))
    outcome = decide(journal, server)
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith("errors")
    assert outcome.noun.requests < 60
    assert server.splits[-1] == 0.0
    assert outcome.is_refused


def test_a_slow_candidate_is_rolled_back(journal):
    server = FakeServer(candidate=FakeArm(median_ms=25.0))
    outcome = decide(journal, server)
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith("latency")


def test_a_candidate_that_is_wrong_more_often_is_rolled_back(journal):
    server = FakeServer(FakeArm(wrong_ratio=0.05), FakeArm(wrong_ratio=0.3))
    outcome = decide(journal, server, rows=500)
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith("quality")


def test_answers_that_are_no_numbers_count_as_errors(journal):
    server = FakeServer(candidate=FakeArm(nan_ratio=0.5))
    outcome = decide(journal, server)
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith("errors")


def test_errors_of_both_arms_alike_hold_rather_than_roll_back(journal):
    server = FakeServer(FakeArm(error_ratio=0.3), FakeArm(error_ratio=0.3))
    outcome = decide(journal, server, max_requests=1500)
    assert outcome.noun.action == "hold"
    assert server.splits[-1] == 0.0


def test_a_quality_that_few_labels_cannot_show_holds_and_says_how_many_it_takes(journal):
    outcome = decide(journal, FakeServer(), rows=60)
    assert outcome.noun.action == "hold"
    assert "every labelled row" in outcome.noun.reason
    assert any("labelled rows if" in finding.text for finding in outcome.report.findings)


def test_lost_answers_hold_because_the_arms_cannot_be_compared(journal):
    server = FakeServer(candidate=FakeArm(drops_ratio=0.7))
    outcome = decide(journal, server, max_requests=5000)
    assert outcome.noun.action == "hold"
    assert "lost on one side" in outcome.noun.reason


def test_no_traffic_holds(journal):
    server = FakeServer()

    def sleep(seconds):
        server.now += seconds

    outcome = decide(
        journal, server, traffic=LiveTraffic(check_seconds=0.5, sleep=sleep), max_seconds=5
    )
    assert outcome.noun.action == "hold"
    assert outcome.noun.requests == 0
    assert server.splits == [0.1, 0.0]


def live(server, labels=None, per_look=100):
    def sleep(seconds):
        for _ in range(per_look):
            server.answer(f"user-{len(server.ring)}")

    return LiveTraffic(check_seconds=0.5, sleep=sleep, labels=labels)


def test_live_traffic_promotes_a_good_candidate(journal):
    server = FakeServer()
    assert decide(journal, server, traffic=live(server)).noun.action == "promote"


def test_live_labels_roll_a_wrong_candidate_back(journal):
    """Labels become known later than answers; those that never do are left out."""
    server = FakeServer(FakeArm(median_ms=10), FakeArm(median_ms=10))

    def labels():
        return {item.id: 2.0 if item.arm == "candidate" else 1.0 for item in server.ring}

    config = RolloutConfig()
    outcome = roll_out(
        ENDPOINT, config, client=server, traffic=live(server, labels), journal=journal,
        has_labels=True, is_regression=False, now=server.clock,
    )  # fmt: skip
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith("quality")


def test_answers_given_before_the_rollout_do_not_count(journal):
    server = FakeServer(FakeArm(error_ratio=1.0))
    for index in range(300):
        server.answer(f"old-{index}")
    server.baseline = FakeArm()
    outcome = decide(journal, server)
    assert outcome.noun.guardrails[0].baseline_events == 0


# Whatever goes wrong, the baseline has all traffic


def test_a_lost_server_is_said_clearly(journal):
    server = FakeServer(lost_after=400)
    with pytest.raises(EndpointError, match="lost during the rollout") as caught:
        decide(journal, server)
    assert "abort" in caught.value.hint
    assert journal.read().status == "failed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_any_interruption_gives_the_traffic_back(journal, error):
    server = FakeServer()

    def fail(traffic):
        if traffic._sent >= 400:
            raise error

    with pytest.raises(error):
        decide(journal, server, traffic=FakeTraffic(server, on_advance=fail))
    assert server.split.weights["candidate"] == 0.0


def test_giving_the_traffic_back_is_tried_again(journal):
    """An interrupt in the middle of an exchange spoils the connection for the next one."""
    server = FakeServer()
    answered = server.set_traffic
    failures = iter([EndpointError("request already sent", hint="")])

    def spoil(split):
        if split.weights["candidate"] == 0.0 and (error := next(failures, None)):
            raise error
        return answered(split)

    def interrupt(traffic):
        server.set_traffic = spoil
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide(journal, server, traffic=FakeTraffic(server, on_advance=interrupt))
    assert server.split.weights["candidate"] == 0.0


def test_a_second_hand_on_the_split_ends_the_rollout(journal):
    server = FakeServer()

    def meddle(traffic):
        if traffic._sent == 200:
            server.split = TrafficSplit(weights={"baseline": 0.3, "candidate": 0.7})

    with pytest.raises(ConflictError, match="someone else"):
        decide(journal, server, traffic=FakeTraffic(server, on_advance=meddle))
    assert server.split.weights["candidate"] == 0.0


def test_a_service_without_candidate_is_refused(journal):
    alone = Endpoint(service="wines", url="http://127.0.0.1:1", pid=1, arms={"baseline": "x"})
    server = FakeServer()
    with pytest.raises(ConflictError, match="needs baseline and candidate"):
        roll_out(
            alone, RolloutConfig(), client=server, traffic=FakeTraffic(server), journal=journal
        )


def test_two_rollouts_of_one_service_exclude_each_other(journal):
    server = FakeServer()
    with journal.held(), pytest.raises(ConflictError, match="already under way"):
        decide(journal, server)


# Memory


def interrupted(journal, server, after, **settings):
    def stop(traffic):
        if traffic._sent >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide(journal, server, traffic=FakeTraffic(server, on_advance=stop), **settings)


def test_an_interrupted_rollout_goes_on_where_it_was(journal):
    server = FakeServer()
    interrupted(journal, server, 1200)
    before = journal.read()
    assert before.step > 0
    outcome = decide(journal, server)
    assert outcome.noun.action == "promote"
    assert journal.read().id == before.id
    assert sum(journal.read().requests) > sum(before.requests)


def test_other_settings_start_anew(journal):
    server = FakeServer()
    interrupted(journal, server, 1200)
    before = journal.read()
    decide(journal, server, alpha=0.01)
    assert journal.read().id != before.id


def test_a_new_server_keeps_the_evidence_but_not_the_latency(journal):
    server = FakeServer(FakeArm(wrong_ratio=0.1), FakeArm(wrong_ratio=0.1))
    interrupted(journal, server, 1200)
    fresh = FakeServer(seed=5)
    other = ENDPOINT.model_copy(update={"pid": 8})
    outcome = roll_out(
        other, RolloutConfig(), client=fresh, traffic=FakeTraffic(fresh), journal=journal,
        now=fresh.clock,
    )  # fmt: skip
    errors = outcome.noun.guardrails[0]
    assert errors.baseline_total + errors.candidate_total > len(fresh.ring)


def test_the_memory_survives_a_kill_at_any_moment(journal, tmp_path):
    """The state is valid JSON after each look, and a dead process leaves no lock behind."""
    code = (
        "import os, sys\n"
        "from fairlead.serve.rollout import RolloutConfig, RolloutJournal, roll_out\n"
        "from pathlib import Path\n"
        "from tests.fakes.rollout_server import ENDPOINT, FakeServer, FakeTraffic\n"
        "server = FakeServer()\n"
        "def die(traffic):\n"
        "    if traffic._sent >= 800: os.kill(os.getpid(), 9)\n"
        "roll_out(ENDPOINT, RolloutConfig(), client=server, now=server.clock,\n"
        "    traffic=FakeTraffic(server, on_advance=die),\n"
        f"    journal=RolloutJournal(Path({str(tmp_path / 'rollouts')!r}), 'wines'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -9
    state = journal.read()
    assert state.status == "running"
    assert sum(state.requests) == 800
    assert not journal.is_held
    assert "nobody watches" in state_report(state, is_running=False).findings[0].text
    assert decide(journal, FakeServer()).noun.action == "promote"


def test_a_running_rollout_obeys_another_command(journal):
    server = FakeServer()

    def ask(traffic):
        if traffic._sent == 400:
            steer(server, journal, promote=False)

    outcome = decide(journal, server, traffic=FakeTraffic(server, on_advance=ask))
    assert outcome.noun.action == "roll-back"
    assert "by hand" in outcome.noun.reason


def test_a_running_rollout_is_promoted_by_hand(journal):
    server = FakeServer()

    def ask(traffic):
        if traffic._sent == 400:
            steer(server, journal, promote=True)

    outcome = decide(journal, server, traffic=FakeTraffic(server, on_advance=ask))
    assert outcome.noun.action == "promote"
    assert server.split.weights["candidate"] == 1.0


@pytest.mark.parametrize(("promote", "share"), [(True, 1.0), (False, 0.0)])
def test_a_dead_rollout_is_ended_by_hand(journal, promote, share):
    server = FakeServer()
    interrupted(journal, server, 400)
    server.set_traffic(TrafficSplit(weights={"baseline": 0.9, "candidate": 0.1}))
    state = steer(server, journal, promote=promote)
    assert server.split.weights["candidate"] == share
    assert state.status == ("decided" if promote else "aborted")
    assert state_report(journal.read(), is_running=False).summary


def test_nothing_to_end_is_said(journal):
    with pytest.raises(ConflictError, match="no rollout"):
        steer(FakeServer(), journal, promote=True)


def test_a_request_that_makes_no_sense_is_refused(journal, tmp_path):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "wines.request").write_text("explode")
    with pytest.raises(UsageError, match="explode"):
        journal.take_wish()


def test_a_damaged_memory_is_an_error_with_a_next_step(journal, tmp_path):
    from fairlead.core.errors import WorkspaceError

    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "wines.json").write_text("{")
    with pytest.raises(WorkspaceError, match="cannot be read"):
        journal.read()


def test_the_state_is_readable_json(journal, tmp_path):
    decide(journal, FakeServer())
    document = json.loads((tmp_path / "rollouts" / "wines.json").read_text())
    assert document["status"] == "decided"
    assert document["decision"]["action"] == "promote"


# Words


def test_the_report_carries_numbers_and_evidence(journal):
    outcome = decide(journal, FakeServer(), rows=400)
    names = {measure.name for measure in outcome.report.measures}
    assert {"candidate_requests", "candidate_error_upper_bound", "prediction_disagreement"} <= names
    assert {item.metric for item in outcome.evidence} >= {"rollout_errors_ratio"}
    assert all(item.subject == "sha256:c" for item in outcome.evidence)
    assert outcome.report.plots[0].marks


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": [0.5, 0.2]},
        {"steps": [0.0, 0.5]},
        {"steps": []},
        {"guardrails": ["errors", "errors"]},
        {"alpha": 0.7},
        {"no_such": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError):
        RolloutConfig.parse(settings)
