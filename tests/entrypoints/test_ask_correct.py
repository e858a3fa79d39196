"""What the router was asked is remembered on this machine, and may be corrected."""

from __future__ import annotations

import json

import pytest

from fairlead.api.context import Context
from fairlead.api.feedback import Label, correct, parse_label, recall, remember
from fairlead.core.errors import UsageError
from fairlead.router import ask

SLOW = "my inference is slow"


@pytest.fixture
def context(tmp_path):
    return Context.open(home=tmp_path / ".fairlead")


def memory_of(context):
    return context.workspace.root / "router" / "questions.jsonl"


def test_question_and_answer_are_remembered(context):
    remember(ask(SLOW, answers=["not profiled"]), context)

    [asked] = recall(context)
    assert asked.text == SLOW
    assert asked.answers == ("not-profiled",)
    assert asked.answered == Label(kind="route", skills=("production-debugging-techniques",))
    assert asked.correction is None


def test_a_correction_belongs_to_the_last_question(context):
    remember(ask(SLOW), context)
    remember(ask("quantize my model"), context)

    correct(parse_label("model-compression-techniques"), context)

    first, last = recall(context)
    assert first.correction is None
    assert last.correction == Label(kind="route", skills=("model-compression-techniques",))


def test_the_last_correction_counts(context):
    remember(ask(SLOW), context)
    correct(parse_label("redirect:out-of-scope"), context)
    correct(parse_label("clarify:speed-or-accuracy"), context)

    assert str(recall(context)[0].correction) == "clarify:speed-or-accuracy"


def test_nothing_is_ever_rewritten(context):
    remember(ask(SLOW), context)
    before = memory_of(context).read_bytes()

    correct(parse_label("redirect:out-of-scope"), context)

    assert memory_of(context).read_bytes().startswith(before)


def test_only_the_owner_may_read_it(context):
    remember(ask(SLOW), context)

    assert memory_of(context).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "damage", [b'{"event": "asked", "id": "x', b"\x00\xff\n", b"[1]\n", b'{"event": "asked"}\n']
)
def test_a_damaged_line_costs_only_itself(context, damage):
    remember(ask(SLOW), context)
    with memory_of(context).open("ab") as file:
        file.write(damage)

    remember(ask("serve my model"), context)

    assert [asked.text for asked in recall(context)] == [SLOW, "serve my model"]


@pytest.mark.parametrize(
    "text",
    [
        "model-serving-patterns",
        "quantization-for-inference,model-serving-patterns",
        "redirect:llm-specialist",
        "clarify:deployment-target",
    ],
)
def test_a_label_is_written_as_it_is_read(text):
    assert str(parse_label(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "quantization",
        "redirect:",
        "redirect:nobody",
        "clarify:what",
        "model-serving-patterns,model-serving-patterns",
    ],
)
def test_a_label_that_means_nothing_is_refused(text):
    with pytest.raises(UsageError):
        parse_label(text)


def test_the_command_line_remembers_and_corrects(here, tmp_path):
    home = {"FAIRLEAD_HOME": str(tmp_path / "home")}
    here("ask", SLOW, check=0, env=home)

    done = here("ask", "--correct", "redirect:pytorch-engineering", "--json", check=0, env=home)

    assert done.json["text"] == SLOW
    assert done.json["correction"]["redirect_to"] == "pytorch-engineering"
    lines = (tmp_path / "home" / "router" / "questions.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["asked", "corrected"]


def test_a_question_may_be_asked_and_corrected_at_once(here, tmp_path):
    home = {"FAIRLEAD_HOME": str(tmp_path / "home")}

    done = here("ask", SLOW, "--correct", "model-serving-patterns", check=0, env=home)

    assert "should be model-serving-patterns" in " ".join(done.stderr.split())


def test_recording_can_be_turned_off(here, tmp_path):
    home = {"FAIRLEAD_HOME": str(tmp_path / "home"), "FAIRLEAD_RECORD": "0"}

    here("ask", SLOW, check=0, env=home)
    done = here("ask", SLOW, "--correct", "model-serving-patterns", check=2, env=home)

    assert "FAIRLEAD_RECORD" in done.stderr
    assert not (tmp_path / "home" / "router").exists()


def test_there_must_be_something_to_correct(here):
    assert "no question is remembered" in here("ask", "--correct", "redirect:out-of-scope").stderr


def test_an_unknown_correction_names_the_known(here):
    done = here("ask", SLOW, "--correct", "serving", check=2)

    assert "the skills are quantization-for-inference" in done.stderr


def test_an_answer_is_given_even_where_nothing_can_be_remembered(here, tmp_path):
    (tmp_path / "home").write_text("a file in the place of the workspace")

    done = here("ask", SLOW, "--json", check=0, env={"FAIRLEAD_HOME": str(tmp_path / "home")})

    assert done.json["kind"] == "clarify"
    assert "not remembered" in done.stderr


def test_a_batch_leaves_no_memory(here, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"id": "1", "text": "serve my model"}\n')

    here("ask", "--batch", "lines.jsonl", check=0, env={"FAIRLEAD_HOME": str(tmp_path / "home")})

    assert not (tmp_path / "home" / "router").exists()
