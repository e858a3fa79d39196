from pathlib import Path

import pytest

from fairlead.core.errors import UsageError
from fairlead.router import Question, Redirect, Route, ask

DEPLOY = "I need to deploy my model"
SLOW = "my inference is slow"


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("cloud", "cloud"),
        ("1", "cloud"),
        ("CLOUD.", "cloud"),
        ("Cloud or server: it answers requests", "cloud"),
        ("we run on AWS lambda", "cloud"),
        ("clud", "cloud"),
        ("2", "edge"),
        ("on a Raspberry Pi in the field", "edge"),
        ("every night over the whole table", "batch"),
        ("not on a device, it is a server", "cloud"),
    ],
)
def test_an_answer_may_be_an_id_a_number_or_free_text(answer, target):
    assert ask(DEPLOY).answer(answer).answers == (target,)


@pytest.mark.parametrize("answer", ["not sure", "no idea", "not profiled yet", "we haven't", "1"])
def test_not_knowing_the_bottleneck_means_profile_first(answer):
    assert ask(SLOW).answer(answer).skill_ids == ("production-debugging-techniques",)


@pytest.mark.parametrize(
    "answer", ["purple", "", "7", "0", "99999999", "²", "cloud or edge", "x" * 200]
)
def test_an_answer_that_fits_no_option_lists_the_options(answer):
    with pytest.raises(UsageError) as caught:
        ask(DEPLOY).answer(answer)

    assert "1) cloud, 2) edge, 3) batch" in caught.value.hint


def test_an_endless_answer_is_refused():
    with pytest.raises(UsageError):
        ask(DEPLOY).answer("cloud " * 100_000)


def test_an_answer_after_the_end_is_refused():
    with pytest.raises(UsageError, match="ended"):
        ask(DEPLOY, answers=["cloud", "cloud"])


def test_both_named_means_both():
    assert ask("set up MLOps").answer("tracking and also automation").answers == ("both",)


def test_a_question_names_options_and_what_would_settle_it():
    question = ask(SLOW)

    assert isinstance(question, Question)
    assert question.question
    assert [option.number for option in question.options] == [1, 2, 3]
    assert question.measurements[0].metric == "model_time_share"
    assert question.measurements[0].command.startswith("fairlead ")
    assert not question.skills


def test_a_route_gives_a_reason_for_every_step():
    route = ask("quantize my model to int8 and serve it")

    assert isinstance(route, Route)
    assert all(step.reason for step in route.skills)
    assert "model-compression-techniques" in route.also_consider
    assert not set(route.also_consider) & set(route.skill_ids)


def test_a_redirect_says_why_and_what_brings_one_back():
    redirect = ask("training is slow")

    assert isinstance(redirect, Redirect)
    assert redirect.reason
    assert redirect.come_back


def test_the_decisive_phrases_are_the_users_own():
    text = "please QUANTIZE my model"

    [span] = ask(text).spans

    assert text[span.start : span.end] == span.text == "QUANTIZE"


def test_a_bottleneck_in_the_text_is_not_asked_for():
    answer = ask("my model is too slow").answer("inference, and requests queue up")

    assert answer.skill_ids == ("model-serving-patterns", "scaling-and-load-balancing")


def test_what_is_ruled_out_is_no_concern():
    answer = ask("I don't need monitoring, I just want to prune the network")

    assert answer.skill_ids == ("model-compression-techniques",)
    assert answer.facts.negated == ("skill.monitoring",)


def test_answers_are_plain_data():
    for text in (DEPLOY, "prune my model", "training is slow"):
        answer = ask(text)
        assert type(answer).model_validate_json(answer.model_dump_json()) == answer


def test_a_question_read_back_from_json_can_be_answered():
    question = Question.model_validate_json(ask(DEPLOY).model_dump_json())

    assert question.answer("batch").skill_ids == ("model-serving-patterns",)


def test_answers_by_number_walk_the_whole_chain():
    assert ask("my model is too slow", answers=["1", "2"]).answers == ("inference", "model")


COMMANDS = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text("utf-8")


@pytest.mark.parametrize("text", [DEPLOY, SLOW, "performance issues", "production monitoring"])
def test_what_a_question_proposes_to_measure_is_a_command(text):
    for measurement in ask(text).measurements:
        assert f"`{measurement.command}" in COMMANDS


def test_what_would_confirm_a_route_is_a_command():
    text = (
        "quantize, prune, use all cpu cores, serve, canary, autoscale, track experiments, ci/cd, "
    )
    found = ask(text + "detect drift and debug").measurements

    assert len(found) >= 8
    for measurement in found:
        assert f"`{measurement.command}" in COMMANDS


def test_an_option_may_be_given_by_its_number():
    question = ask("my inference is slow")

    assert question.answer(2) == question.answer("2") == question.answer("model")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("performance in production is bad", "accuracy"),
        ("my model isn't performing well in production", "accuracy"),
        ("my inference is slow", "model"),
        ("I need to deploy my model", "cloud"),
    ],
)
def test_what_was_answered_in_the_end_is_not_its_own_runner_up(text, option):
    found = ask(text).answer(option)

    assert found.runner_up is not None
    assert found.runner_up.answer not in {*found.skill_ids, found.redirect_to}
