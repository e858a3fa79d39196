"""The rules on their own: what is decided from typed facts alone."""

import pytest

from fairlead.router.ordering import SHORT
from fairlead.router.rules import judge
from fairlead.router.scene import observe

LONG = {skill: name for name, skill in SHORT.items()}


def judged(text):
    verdict = judge(observe(text))
    return verdict.question or verdict.redirect_to or [LONG[skill] for skill in verdict.skills]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the predictions are inaccurate in production", ["monitoring"]),
        ("the endpoint is broken in production", ["debugging"]),
        ("costs of the model are expensive", ["hardware", "quantization"]),
        ("optimize the model", ["hardware", "quantization"]),
        ("deploy the model in the cloud", ["serving"]),
        ("deploy the model for bulk predictions overnight", ["serving"]),
        ("deploy the model on android", ["quantization", "serving"]),
        ("nothing in here", "unknown-concern"),
        ("Grafana", ["monitoring"]),
        ("Postgres", "unknown-concern"),
        ("the network is not yet trained, which architecture", "neural-architectures"),
        ("my LLM is slow", "llm-specialist"),
        ("monitoring is bad", ["monitoring"]),
        ("fast enough, but deploy it", "deployment-target"),
        ("my website must autoscale", "out-of-scope"),
        ("gradient clipping for my RNN", "training-optimization"),
        ("deploy it in production although the loss plateaus", "deployment-target"),
    ],
)
def test_facts_decide(text, expected):
    assert judged(text) == expected


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        ("it is not trained yet", "untrained"),
        ("the deployed model fails", "fault"),
        ("our deployed model", "deployed"),
        ("get it deployed", None),
        ("I have trained a model", "trained"),
        ("training goes on", "training"),
        ("hello", None),
    ],
)
def test_the_phase_of_the_model_is_a_fact(text, phase):
    assert observe(text).facts.phase == phase


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("performance, that is accuracy", "accuracy"),
        ("performance is slow", "speed"),
        ("performance", None),
        ("accuracy", None),
    ],
)
def test_what_performance_means_is_a_fact(text, meaning):
    assert observe(text).facts.performance == meaning


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("we never profiled, no idea where the time goes", "not-profiled"),
        ("requests queue up", "infrastructure"),
        ("the model itself is slow", "model"),
        ("slow", None),
    ],
)
def test_the_bottleneck_is_a_fact(text, where):
    assert observe(text).facts.bottleneck == where


def test_links_are_not_read():
    assert observe("prune https://example.com/quantize/deploy it").skills == ("compression",)


def test_a_sentence_ends_a_phrase():
    assert observe("canary. release of models").has("skill.rollout")
    assert not observe("split. traffic").has("skill.rollout")
    assert observe("split traffic").has("skill.rollout")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [("it takes 1.5 s on v2.3", 1), ("model.fit is slow", 1), ("slow. Why? help", 3), ("a\nb", 2)],
)
def test_a_point_inside_a_number_or_name_ends_no_sentence(text, sentences):
    assert len(set(observe(text).reading.sentences)) == sentences
