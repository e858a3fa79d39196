"""Rules and scorer together."""

from dataclasses import replace

import numpy as np
import pytest

from fairlead.router import ask
from fairlead.router.confidence import confidence_of, runner_up
from fairlead.router.corpus import load_corpus, parse_corpus
from fairlead.router.decision import decide
from fairlead.router.encoder import Heard
from fairlead.router.features import SIZE, features_of
from fairlead.router.scene import observe
from fairlead.router.scorer import Weights, load_weights, score


def weights_for(answer, *, parts=()):
    """Weights that know one answer, whatever the text."""
    shipped = load_weights()
    return Weights(
        answers=shipped.answers,
        skills=shipped.skills,
        answer_weights=np.zeros_like(shipped.answer_weights),
        answer_bias=np.array([9.0 if name == answer else 0.0 for name in shipped.answers]),
        skill_weights=np.zeros_like(shipped.skill_weights),
        skill_bias=np.array([9.0 if name in parts else -9.0 for name in shipped.skills]),
        rarity=shipped.rarity,
    )


UNCLEAR = "the thingamajig of our flurbish contraption wobbles"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("serving", "route"), ("?deployment-target", "clarify"), ("!llm-specialist", "redirect")],
)
def test_the_scorer_decides_where_the_rules_do_not_understand(answer, kind):
    decision = decide(observe(UNCLEAR), weights_for(answer))

    assert decision.verdict.kind == kind
    assert decision.verdict.rule == "scorer"
    assert not decision.by_rule


def test_rules_decide_where_every_word_is_understood():
    decision = decide(observe("my inference is slow"), weights_for("!out-of-scope"))

    assert decision.verdict.question == "model-or-infrastructure"
    assert decision.by_rule


def test_skills_named_in_passing_do_not_bind_when_the_scorer_hears_nothing_of_them():
    decision = decide(observe("canary"), weights_for("!out-of-scope"))

    assert decision.verdict.redirect_to == "out-of-scope"


def test_a_model_is_never_changed_only_because_it_is_slow():
    text = "each flurbish forecast response in the wobbly contraption is slow"

    decision = decide(observe(text), weights_for("quantization"))

    assert decision.verdict.question == "model-or-infrastructure"


@pytest.mark.parametrize(
    ("text", "skills"),
    [
        ("deploy the flurbish forecaster with BentoML", ["model-serving-patterns"]),
        (
            "deploy the flurbish forecaster with Core ML",
            ["quantization-for-inference", "model-serving-patterns"],
        ),
        ("publish the serving flurbish on Heroku", []),
    ],
)
def test_where_a_model_runs_is_not_asked_when_the_product_says_it(text, skills):
    decision = decide(observe(text), weights_for("?deployment-target"))

    assert list(decision.verdict.skills) == skills


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the flurbish net needs too much memory at inference", "quantization"),
        ("the flurbish weights are too large for our users", "compression"),
    ],
)
def test_what_is_too_large_gets_fewer_bits_and_then_fewer_weights(text, answer):
    decision = decide(observe(text), weights_for(answer))

    assert decision.verdict.skills == (
        "quantization-for-inference",
        "model-compression-techniques",
    )


def test_a_question_must_be_clearly_likelier_than_an_answer():
    shipped = load_weights()
    close = {"?deployment-target": 5.0, "serving": 4.9}
    weights = replace(
        weights_for("serving"),
        answer_bias=np.array([close.get(name, -9.0) for name in shipped.answers]),
    )

    assert decide(observe(UNCLEAR), weights).verdict.skills == ("model-serving-patterns",)


def test_a_named_optimisation_stays_a_route():
    text = "flurbish int8 inference is slow"

    decision = decide(observe(text), weights_for("quantization"))

    assert decision.verdict.skills == ("quantization-for-inference",)


def test_several_skills_come_in_the_order_of_work():
    weights = weights_for("monitoring", parts=("monitoring", "serving"))

    decision = decide(observe(UNCLEAR), weights)

    assert decision.verdict.skills == (
        "model-serving-patterns",
        "production-monitoring-and-alerting",
    )


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("prune the network and quantize it to int8", ["compression", "quantization"]),
        ("quantize to int8 and maybe prune", ["quantization", "compression"]),
        ("detect drift, then retrain automatically", ["monitoring", "automation"]),
        ("automate retraining with ci/cd and monitor drift", ["automation", "monitoring"]),
        ("automated retraining, triggered by drift detection", ["monitoring", "automation"]),
    ],
)
def test_the_order_of_mention_counts_where_either_order_works(text, order):
    ids = {
        "compression": "model-compression-techniques",
        "quantization": "quantization-for-inference",
        "monitoring": "production-monitoring-and-alerting",
        "automation": "mlops-pipeline-automation",
    }

    assert list(ask(text).skill_ids) == [ids[name] for name in order]


def test_probabilities_are_probabilities():
    found = score(observe("deploy the model behind an api"))

    assert sum(found.answers.values()) == pytest.approx(1)
    assert all(0 <= value <= 1 for value in found.skills.values())


def test_the_runner_up_is_another_answer():
    decision = decide(observe("quantize the model"))

    found = runner_up(decision)

    assert found is not None
    assert found.answer != "quantization-for-inference"
    assert 0 < found.score < 1


def test_agreement_makes_an_answer_surer():
    sure = ask("quantize my model to int8 with a calibration set")
    unsure = ask(UNCLEAR)

    assert sure.confidence > 0.9 > unsure.confidence


def test_the_concern_is_asked_for_when_every_answer_is_unlikely():
    shipped = load_weights()
    weights = replace(
        shipped,
        answer_weights=np.zeros_like(shipped.answer_weights),
        answer_bias=np.zeros_like(shipped.answer_bias),
    )

    silent = Heard(dict.fromkeys(shipped.answers, 0.0), dict.fromkeys(shipped.skills, 0.0))

    decision = decide(observe(UNCLEAR), weights, silent)

    assert decision.verdict.question == "unknown-concern"


def test_there_is_no_runner_up_when_every_answer_was_given():
    shipped = load_weights()
    only = Weights(
        answers=("serving",),
        skills=shipped.skills,
        answer_weights=np.zeros((1, SIZE), np.float32),
        answer_bias=np.zeros(1, np.float32),
        skill_weights=np.zeros_like(shipped.skill_weights),
        skill_bias=np.full(len(shipped.skills), -9.0, np.float32),
        rarity=shipped.rarity,
    )

    decision = decide(observe(UNCLEAR), only)

    assert runner_up(decision) is None
    assert 0 <= confidence_of(decision) <= 1


def test_features_do_not_see_products():
    plain, _ = features_of(observe("compare my runs"))
    named, _ = features_of(observe("compare my runs. We use MLflow. (Docker)"))

    assert plain.tolist() == named.tolist()


def test_the_model_that_ships_is_small_and_complete():
    weights = load_weights()

    assert weights.answer_weights.shape == (len(weights.answers), SIZE)
    assert set(weights.skills) <= set(weights.answers)
    assert len(weights.answers) == 10 + 7 + 5


def test_the_corpus_is_labelled_with_known_answers_only():
    known = set(load_weights().answers)
    corpus = load_corpus()

    assert len(corpus) > 4_000
    assert all(set(item.skills or (item.label,)) <= known for item in corpus)
    assert len({item.text for item in corpus if item.is_held_back}) > 300


def test_each_kind_of_label_is_read():
    route, question, redirect = parse_corpus(
        "= serving > rollout\na\n\n= ?deployment-target\nb\n= !llm-specialist\nc\n", "demo"
    )

    assert (route.kind, route.skills) == ("route", ("serving", "rollout"))
    assert (question.kind, question.skills) == ("clarify", ())
    assert (redirect.kind, redirect.fold in range(10)) == ("redirect", True)
