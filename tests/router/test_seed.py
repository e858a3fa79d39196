"""Every query, row and chain of the product owner's description, without exception."""

import tomllib
from pathlib import Path

import pytest

from fairlead.router import ask

CASES = tomllib.loads((Path(__file__).parent / "seed_cases.toml").read_text("utf-8"))["case"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['from']}: {case['text'][:40]}")
def test_the_seed_is_answered_as_it_says(case):
    answers = case.get("answers", [])

    for turn, question in enumerate(case.get("steps", [])):
        assert ask(case["text"], answers=answers[:turn]).ambiguity == question
    answer = ask(case["text"], answers=answers)

    assert list(answer.skill_ids) == case.get("skills", [])
    assert answer.ambiguity == case.get("ambiguity")
    assert answer.redirect_to == case.get("redirect_to")
    assert [item.id for item in answer.also_consult] == case.get("consult", [])
    assert set(case.get("also", [])) <= set(answer.also_consider)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['from']}: {case['text'][:40]}")
def test_an_option_leads_where_it_said_it_would(case):
    question = ask(case["text"])

    for option in question.options:
        after = question.answer(option.id)
        assert after.kind == option.leads_to.kind
        assert after.skill_ids == option.leads_to.skills
        assert after.redirect_to == option.leads_to.redirect_to
        assert after.ambiguity == option.leads_to.ambiguity
