"""`fairlead router`: scored on what is known, and on what people corrected."""

from __future__ import annotations

import json
import math

import pytest

from fairlead.api.context import Context
from fairlead.api.feedback import Label, correct, parse_label, remember
from fairlead.api.labelled_problems import (
    LabelledProblem,
    corrected_problems,
    problems_of_file,
    shipped_problems,
)
from fairlead.api.router_scores import RouterScores, Verdict, judge, score_router
from fairlead.core.errors import DataError
from fairlead.router import ask

SLOW = "my inference is slow"
ASKED = parse_label("clarify:model-or-infrastructure")
SERVE = parse_label("model-serving-patterns")
BOTH = parse_label("quantization-for-inference,model-serving-patterns")
AWAY = parse_label("redirect:llm-specialist")


def verdict(should, said, sure=0.5, stratum="a"):
    return Verdict(LabelledProblem("x", should, stratum), said, sure, 1.0)


def test_every_shipped_problem_has_a_label():
    problems = list(shipped_problems())

    assert len(problems) > 1000
    assert {problem.label.kind for problem in problems} == {"route", "clarify", "redirect"}
    assert all(problem.text.strip() and problem.is_shipped for problem in problems)


def test_a_verdict_is_exact_only_when_the_order_is_right():
    turned = Label(kind="route", skills=BOTH.skills[::-1])

    assert verdict(BOTH, BOTH).is_exact
    assert not verdict(BOTH, turned).is_exact
    assert verdict(BOTH, turned).is_kind
    assert not verdict(BOTH, None).is_kind


def test_scores_count_what_they_say():
    scores = RouterScores((
        verdict(ASKED, ASKED, 0.9), verdict(ASKED, SERVE, 0.8), verdict(SERVE, ASKED, 0.7),
        verdict(BOTH, BOTH, 0.95), verdict(SERVE, BOTH, 0.2), verdict(AWAY, AWAY, 0.6),
    ))  # fmt: skip

    assert scores.share(lambda v: v.is_exact) == pytest.approx(3 / 6)
    assert scores.share(lambda v: v.is_kind) == pytest.approx(4 / 6)
    assert scores.multi_skill == 1.0
    assert scores.over_routing == pytest.approx(1 / 2)
    assert scores.clarify_precision == pytest.approx(1 / 2)
    assert scores.share(lambda v: v.is_kind, "clarify") == pytest.approx(1 / 2)
    assert scores.share(lambda v: v.is_exact, "redirect") == 1.0
    assert scores.coverage == pytest.approx(2 / 6)


def test_a_share_of_nothing_is_unknown():
    assert math.isnan(RouterScores((verdict(SERVE, SERVE),)).multi_skill)


def test_a_router_that_knows_itself_has_no_calibration_error():
    half = [verdict(SERVE, SERVE if n % 2 else AWAY, 0.5) for n in range(10)]

    assert RouterScores(tuple(half)).calibration_error == pytest.approx(0.0)
    assert RouterScores(tuple(half)).calibration() == [(0.5, 0.5, 10)]


def test_scores_are_told_per_stratum():
    outcome = score_router(
        [LabelledProblem(SLOW, ASKED, "speed"), LabelledProblem(SLOW, SERVE, "wrong on purpose")]
    )

    rows = {row[0]: row[1:] for row in outcome.report.tables[0].rows}
    assert rows == {"speed": (1, 1.0, 1.0), "wrong on purpose": (1, 0.0, 0.0)}
    assert outcome.report.tables[1].rows[0][1] == "model-serving-patterns"


def test_a_text_that_is_refused_is_wrong():
    assert judge(LabelledProblem("", SERVE, "a")).said is None


def test_without_problems_there_is_no_score():
    with pytest.raises(DataError):
        score_router([])


def test_corrections_become_problems(tmp_path):
    context = Context.open(home=tmp_path)
    remember(ask(SLOW), context)
    remember(ask("my model is too slow", answers=["inference"]), context)
    correct(SERVE, context)

    [problem] = corrected_problems(context)

    assert problem == LabelledProblem(
        "my model is too slow", SERVE, "corrected", answers=("inference",)
    )


def test_a_file_of_problems_is_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    lines = [
        {"id": "1", "text": SLOW, "answer": "clarify:model-or-infrastructure"},
        {"turns": ["my model is too slow", "training"], "answer": str(AWAY), "stratum": "chain"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")

    assert list(problems_of_file(path)) == [
        LabelledProblem(SLOW, ASKED, "mine"),
        LabelledProblem("my model is too slow", AWAY, "chain", ("training",)),
    ]


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"text": "x"}', '{"text": "x", "answer": "serve"}', '{"answer": 1}']
)
def test_a_line_that_is_no_problem_is_named(tmp_path, line):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"\n{line}\n")

    with pytest.raises(DataError, match="line 2 of"):
        list(problems_of_file(path))


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "mine.jsonl"
    answers = ("clarify:model-or-infrastructure", "redirect:out-of-scope")
    path.write_text("".join(json.dumps({"text": SLOW, "answer": a}) + "\n" for a in answers))
    return path


def test_the_command_scores_a_file(here, problems):
    document = here("router", "evaluate", problems, "--json", check=0).json

    measures = {item["name"]: item["value"] for item in document["measures"]}
    assert measures["exact"] == 0.5
    assert measures["clarify_recall"] == 1.0
    assert document["findings"] == []


def test_a_score_below_the_limit_is_a_no(here, problems):
    here("router", "evaluate", problems, "--at-least", "0.5", check=0)

    assert "[refused]" in here("router", "evaluate", problems, "--at-least", "0.6", check=1).stdout


def test_corrections_alone_may_be_scored(here, tmp_path):
    home = {"FAIRLEAD_HOME": str(tmp_path / "home")}
    assert "no labelled problem" in here("router", "evaluate", "--corrected", env=home).stderr
    here("ask", SLOW, "--correct", "clarify:model-or-infrastructure", check=0, env=home)

    done = here("router", "evaluate", "--corrected", "--json", check=0, env=home)

    assert done.json["tables"][0]["rows"] == [["corrected", 1, 1.0, 1.0]]


def test_a_missing_file_is_refused(here):
    assert "there is no file" in here("router", "evaluate", "none.jsonl", check=2).stderr


def test_an_empty_history_says_so(here, tmp_path):
    done = here("router", "history", check=0, env={"FAIRLEAD_HOME": str(tmp_path / "home")})

    assert "nothing has been asked" in done.stderr
    assert done.stdout == ""


def test_the_history_shows_the_newest_first(here, tmp_path):
    home = {"FAIRLEAD_HOME": str(tmp_path / "home")}
    here("ask", SLOW, check=0, env=home)
    here("ask", "serve my model", "--correct", "deployment-strategies", check=0, env=home)

    lines = here("router", "history", check=0, env=home).stdout.splitlines()

    assert "serve my model" in lines[0]
    assert "(should be deployment-strategies)" in lines[0]
    assert f"{SLOW}  → clarify:model-or-infrastructure" in lines[1]
    document = here("router", "history", "--limit", "1", "--json", check=0, env=home).json
    assert [item["text"] for item in document["questions"]] == ["serve my model"]
