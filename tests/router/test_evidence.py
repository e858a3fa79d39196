from datetime import UTC, datetime, timedelta

import pytest

from fairlead.core.evidence import Evidence
from fairlead.router import ask

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def measured(metric, value, unit="ratio", age_s=0):
    return Evidence(
        metric=metric,
        value=value,
        unit=unit,
        method="test",
        subject="sha256:1",
        environment={},
        measured_at=NOW - timedelta(seconds=age_s),
    )


@pytest.mark.parametrize(
    ("evidence", "first"),
    [
        ([measured("model_time_share", 0.8)], "hardware-optimization-strategies"),
        ([measured("model_time_share", 80, "%")], "hardware-optimization-strategies"),
        ([measured("model_time_share", 0.2)], "model-serving-patterns"),
        ([measured("queue_time_share", 0.7)], "model-serving-patterns"),
    ],
)
def test_a_profile_answers_model_or_infrastructure(evidence, first):
    route = ask("my inference is slow", evidence=evidence)

    assert route.skill_ids[0] == first
    assert route.evidence_used[0].metric == evidence[0].metric
    assert route.evidence_used[0].settled == "model-or-infrastructure"


def judged(metric, value, verdict, cause):
    labels = {"cause": cause, "verdict": verdict, "why": "because"}
    return measured(metric, value).model_copy(update={"labels": labels})


@pytest.mark.parametrize(
    ("verdict", "cause", "used"),
    [
        ("infrastructure", "network", "network_time_share"),
        ("infrastructure", "capacity", "queue_time_share"),
        ("infrastructure", "data-path", "model_time_share"),
        ("model", "kernels", "model_time_share"),
    ],
)
def test_the_verdict_of_a_profile_counts_more_than_a_threshold(verdict, cause, used):
    evidence = [
        judged("model_time_share", 0.5, verdict, cause),
        judged("queue_time_share", 0.1, verdict, cause),
        judged("network_time_share", 0.4, verdict, cause),
    ]

    [reading] = ask("my inference is slow", evidence=evidence).evidence_used

    assert (reading.option, reading.metric) == (verdict, used)


@pytest.mark.parametrize(
    ("share", "used"), [(0.9, "padding_share"), (0.0, "model_time_share")], ids=["padded", "not"]
)
def test_padding_is_named_where_it_decides(share, used):
    evidence = [
        judged("model_time_share", 0.3, "infrastructure", "data-path"),
        judged("padding_share", share, "infrastructure", "data-path"),
    ]

    [reading] = ask("my inference is slow", evidence=evidence).evidence_used

    assert (reading.option, reading.metric) == ("infrastructure", used)


def test_time_lost_in_the_network_is_infrastructure():
    route = ask("my inference is slow", evidence=[measured("network_time_share", 0.8)])

    assert route.evidence_used[0].metric == "network_time_share"


@pytest.mark.parametrize(
    "evidence",
    [
        [],
        [measured("model_time_share", 0.5)],
        [measured("queue_time_share", 0.1)],
        [measured("model_time_share", float("nan"))],
        [measured("something_else", 0.9)],
    ],
)
def test_what_settles_nothing_is_asked(evidence):
    question = ask("my inference is slow", evidence=evidence)

    assert question.ambiguity == "model-or-infrastructure"
    assert question.evidence_used == ()


def test_the_newest_measurement_counts():
    old, new = measured("model_time_share", 0.9, age_s=60), measured("model_time_share", 0.1)

    route = ask("my inference is slow", evidence=[new, old])

    assert route.skill_ids[0] == "model-serving-patterns"


def test_a_profile_of_requests_settles_the_whole_chain():
    route = ask("my model is too slow", evidence=[measured("model_time_share", 0.9)])

    assert [item.settled for item in route.evidence_used] == [
        "speed-inference-or-training",
        "model-or-infrastructure",
    ]


def test_training_that_takes_the_time_is_handed_over():
    redirect = ask("my model is too slow", evidence=[measured("training_time_share", 0.9)])

    assert redirect.redirect_to == "training-optimization"


LATE = [measured("latency_p95_ms", 900, "ms"), measured("latency_slo_ms", 200, "ms")]
IN_TIME = [measured("latency_p95_ms", 90, "ms"), measured("latency_slo_ms", 200, "ms")]


@pytest.mark.parametrize(
    ("evidence", "option"),
    [
        (LATE, "speed"),
        ([measured("accuracy_drop_ratio", 0.1)], "accuracy"),
        ([measured("drift_detected", 1, "count"), *IN_TIME], "accuracy"),
        ([measured("prediction_drift_detected", 1, "count")], "accuracy"),
    ],
)
def test_measurements_say_what_performance_means(evidence, option):
    answer = ask("the performance in production is bad", evidence=evidence)

    assert answer.evidence_used[0].option == option


@pytest.mark.parametrize(
    "evidence", [IN_TIME, [*LATE, measured("accuracy_drop_ratio", 0.3)], LATE[:1]]
)
def test_performance_is_asked_when_both_or_none_is_off(evidence):
    answer = ask("the performance in production is bad", evidence=evidence)

    assert answer.ambiguity == "speed-or-accuracy"


@pytest.mark.parametrize(
    "evidence",
    [
        measured("error_rate_ratio", 0.2),
        measured("alerts_firing", 2, "count"),
        measured("drift_detected", 1, "count"),
    ],
)
def test_something_that_is_off_now_is_repaired(evidence):
    route = ask("production monitoring", evidence=[evidence])

    assert route.skill_ids == ("production-debugging-techniques",)


def test_a_quiet_service_still_asks():
    question = ask("production monitoring", evidence=[measured("error_rate_ratio", 0.0)])

    assert question.ambiguity == "proactive-or-reactive"


def test_evidence_stays_with_the_dialogue():
    question = ask("performance is bad", evidence=[measured("model_time_share", 0.9)])

    route = question.answer("speed")

    assert route.skill_ids[0] == "hardware-optimization-strategies"


@pytest.mark.parametrize(
    ("threads", "share_age_s", "first"),
    [
        (16, 0, "model-serving-patterns"),
        (1, 0, "hardware-optimization-strategies"),
        (16, -60, "hardware-optimization-strategies"),
    ],
)
def test_more_threads_than_cpus_are_the_infrastructure(threads, share_age_s, first):
    crowd = measured("threads_per_cpu", threads)
    share = measured("model_time_share", 0.9, age_s=share_age_s)

    assert ask("my inference is slow", evidence=[share, crowd]).skill_ids[0] == first
