"""`fairlead router train`: corrections are folded in, after what changes was shown."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.api import router_learning
from fairlead.api.context import Context
from fairlead.api.feedback import correct, parse_label, remember
from fairlead.api.labelled_problems import LabelledProblem, shipped_problems
from fairlead.api.router_learning import learn
from fairlead.api.router_lessons import fold, forget_lessons, local_weights, said, write_lessons
from fairlead.api.routing import consult
from fairlead.core.errors import DataError
from fairlead.router import ask
from fairlead.router.scene import observe
from fairlead.router.scorer import load_weights

ODD = "our zebra telemetry looks wobbly since the last wombat"
RIGHT = parse_label("experiment-tracking-and-versioning")


@pytest.fixture(autouse=True)
def few_problems(monkeypatch):
    """Compare on some of the problems that ship; all of them take seconds."""
    some = list(shipped_problems())[::25]
    monkeypatch.setattr(router_learning, "shipped_problems", lambda: iter(some))


@pytest.fixture
def context(tmp_path):
    return Context.open(home=tmp_path / ".fairlead")


@pytest.fixture
def corrected(context):
    assert ask(ODD).skill_ids != RIGHT.skills
    remember(ask(ODD), context)
    correct(RIGHT, context)
    return context


@pytest.mark.parametrize(
    "label",
    [
        "experiment-tracking-and-versioning",
        "model-serving-patterns,production-monitoring-and-alerting",
        "redirect:llm-specialist",
        "clarify:deployment-target",
    ],
)
def test_a_correction_of_any_kind_is_learnt(context, label):
    problem = LabelledProblem(ODD, parse_label(label), "corrected")

    weights = fold(load_weights(), [problem], context)

    assert said(observe(ODD), weights) == problem.label


def test_the_weights_that_ship_are_not_touched(context):
    before = load_weights().answer_weights.copy()

    fold(load_weights(), [LabelledProblem(ODD, RIGHT, "corrected")], context)

    assert np.array_equal(load_weights().answer_weights, before)


def test_what_is_right_already_changes_nothing(context):
    answer = ask("quantize my model to int8")
    problem = LabelledProblem(answer.asked, parse_label("quantization-for-inference"), "corrected")

    weights = fold(load_weights(), [problem], context)

    assert np.array_equal(weights.answer_weights, load_weights().answer_weights)


def test_it_tells_what_would_change_and_writes_nothing(corrected):
    outcome = learn(corrected)

    measures = {item.name: item for item in outcome.report.measures}
    assert outcome.report.verdict == "done"
    assert measures["corrections_learnt"].value == 1
    assert measures["answers_changed"].value < 10
    assert outcome.report.tables[0].rows[0][1] == str(RIGHT)
    assert local_weights(corrected) is None


def test_a_lesson_that_costs_too_much_is_refused(corrected):
    assert learn(corrected, max_loss=-1.0).is_refused


def test_without_corrections_there_is_nothing_to_learn(context):
    with pytest.raises(DataError):
        learn(context)


def test_what_was_written_is_read_back_and_forgotten(corrected):
    weights = learn(corrected).noun.weights
    path = write_lessons(weights, corrected)

    stored = local_weights(corrected)

    assert np.array_equal(stored.answer_weights, weights.answer_weights)
    assert path.stat().st_mode & 0o077 == 0
    assert forget_lessons(corrected)
    assert local_weights(corrected) is None
    assert not forget_lessons(corrected)


def test_evaluate_scores_the_router_of_the_workspace(corrected, here, tmp_path):
    home = {"FAIRLEAD_HOME": str(corrected.workspace.root)}

    def scores():
        document = here("router", "evaluate", "--corrected", "--json", check=0, env=home).json
        measures = {item["name"]: item["value"] for item in document["measures"]}
        return measures["exact"], [item["text"] for item in document["findings"]]

    assert scores() == (0.0, [])
    write_lessons(learn(corrected).noun.weights, corrected)
    exact, findings = scores()

    assert exact == 1.0
    assert "taught" in findings[0]


def test_corrections_later_in_a_dialogue_are_named_and_not_learnt(context):
    later = ask("my inference is slow").answer("model")
    remember(later, context)
    correct(RIGHT, context)

    with pytest.raises(DataError, match="1 later in a dialogue"):
        learn(context)

    remember(ask(ODD), context)
    correct(RIGHT, context)
    assert learn(context).report.findings[0].text.startswith("1 corrected later in a dialogue")


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04broken"])
def test_a_broken_lesson_is_left_aside(corrected, data):
    path = corrected.workspace.root / "router" / "scorer.npz"
    path.write_bytes(data)

    assert local_weights(corrected) is None


def test_a_lesson_of_another_version_is_left_aside(corrected, monkeypatch):
    from fairlead.api import router_lessons

    write_lessons(load_weights(), corrected)
    monkeypatch.setattr(router_lessons, "_base_digest", lambda: "sha256:other")

    assert local_weights(corrected) is None


def test_the_workspace_answers_as_it_was_taught_and_others_do_not(corrected, tmp_path):
    write_lessons(learn(corrected).noun.weights, corrected)
    other = Context.open(home=tmp_path / "other")

    assert consult(ODD, context=corrected).answer.skill_ids == RIGHT.skills
    assert consult(ODD, context=other).answer.skill_ids != RIGHT.skills
    assert consult(ODD).answer.skill_ids != RIGHT.skills


def test_the_command_shows_first_and_writes_when_told(here, tmp_path):
    home = {"FAIRLEAD_HOME": str(tmp_path / "home")}
    assert "no first answer to a problem was corrected" in here("router", "train", env=home).stderr
    here("ask", ODD, "--correct", str(RIGHT), check=0, env=home)

    shown = here("router", "train", check=0, env=home)
    assert "nothing is written yet" in shown.stderr
    assert here("ask", ODD, "--json", env=home).json["skills"] != list(RIGHT.skills)
    here("router", "train", "--write", "--json", check=0, env=home)

    assert here("ask", ODD, "--json", env=home).json["skills"] == list(RIGHT.skills)
    (tmp_path / "lines.jsonl").write_text(f'{{"id": "1", "text": "{ODD}"}}')
    batch = here("ask", "--batch", "lines.jsonl", "--json", check=0, env=home)
    assert batch.json["skills"] == list(RIGHT.skills)
    assert "forgotten" in here("router", "train", "--forget", check=0, env=home).stderr
    assert here("ask", ODD, "--json", env=home).json["skills"] != list(RIGHT.skills)


def test_a_correction_against_a_rule_moves_no_other_answer(here):
    here("ask", "my inference is slow", "--correct", "model-serving-patterns", check=0)

    done = here("router", "train", "--write", "--json", check=0)

    measures = {item["name"]: item["value"] for item in done.json["measures"]}
    assert done.json["verdict"] == "kept"
    assert (measures["corrections_learnt"], measures["answers_changed"]) == (0, 0)
    assert "against a rule" in done.json["findings"][0]["text"]
    assert "nothing to write" in done.stderr
