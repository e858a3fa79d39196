"""What must hold for any text."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import UsageError
from fairlead.router import ask
from fairlead.router.corpus import load_corpus

HERE = Path(__file__).parent
SEED = sorted(
    {case["text"] for case in tomllib.loads((HERE / "seed_cases.toml").read_text("utf-8"))["case"]}
)
TOOLS = [
    "Kubernetes",
    "TorchServe",
    "MLflow",
    "Docker",
    "Triton",
    "SageMaker",
    "Airflow",
    "Grafana",
]
WORDS = st.sampled_from(
    ["my", "model", "inference", "training", "slow", "deploy", "production", "monitor", "quantize",
     "not", "accuracy", "latency", "api", "drift", "rollback", "canary", "experiment", "pipeline",
     "edge", "cloud", "batch", "and", "the", "with", "performance", "llm"]
)  # fmt: skip
settings.register_profile("router", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("router")


def answered_or_hinted(act):
    try:
        return 0 <= act().confidence <= 1
    except UsageError as exc:
        return bool(exc.hint)


def decision(text):
    answer = ask(text)
    return answer.kind, answer.skill_ids, answer.redirect_to, answer.ambiguity


@given(st.text(max_size=300))
def test_any_text_is_answered_or_refused(text):
    assert answered_or_hinted(lambda: ask(text))


@given(st.lists(WORDS, min_size=1, max_size=25))
def test_the_same_text_gets_the_same_answer(words):
    text = " ".join(words)

    assert ask(text).model_dump_json() == ask(text).model_dump_json()


@given(st.lists(WORDS, min_size=1, max_size=25))
def test_every_answer_is_exactly_one_kind(words):
    answer = ask(" ".join(words))

    filled = [bool(answer.skills), bool(answer.redirect_to), bool(answer.ambiguity)]
    assert filled.count(True) == 1
    assert filled[["route", "redirect", "clarify"].index(answer.kind)]


@given(st.lists(WORDS, min_size=1, max_size=25))
def test_spans_point_at_the_text(words):
    text = " ".join(words)

    assert all(text[span.start : span.end] == span.text for span in ask(text).spans)


@pytest.mark.parametrize("text", SEED)
def test_case_and_closing_marks_do_not_matter(text):
    assert decision(text.upper()) == decision(text)
    assert decision(f"  {text.lower()}!! ") == decision(text)


KIND = (
    "Hi all, {}. Thanks!",
    "Question: {}",
    "Hello everyone,\n\n{}\n\nAny help is appreciated.\nBest regards",
    "Could somebody please help? {}",
    "We have this problem: {}",
    "{}, any ideas? Many thanks in advance.",
)


@pytest.mark.parametrize("text", SEED)
@pytest.mark.parametrize("frame", KIND)
def test_kindness_changes_nothing(text, frame):
    assert decision(frame.format(text)) == decision(text)


def slips(word):
    """Yield what comes of a word when a finger slips inside it."""
    at = len(word) // 2
    yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    yield word[:at] + word[at + 1 :]
    yield word[:at] + word[at] + word[at:]


def with_one_slip(text):
    """Yield the text with one word spoilt, in every way, word by word."""
    for found in re.finditer("[A-Za-z]{5,}", text):
        for slip in slips(found.group()):
            if slip != found.group():
                yield text[: found.start()] + slip + text[found.end() :]


def test_one_slip_of_the_finger_hardly_ever_changes_an_answer():
    pairs = [(text, spoilt) for text in SEED for spoilt in with_one_slip(text)]
    changed = [spoilt for text, spoilt in pairs if decision(spoilt) != decision(text)]

    assert len(pairs) > 500
    assert len(changed) <= 0.03 * len(pairs), changed


OTHER_WORDS = (
    ("my", "our"), ("is", "seems"), ("too slow", "way too slow"), ("slow", "sluggish"),
    ("model", "ML model"), ("model", "classifier"), ("production", "prod"), ("deploy", "ship"),
    ("monitor", "keep an eye on"), ("large", "big"), ("need to", "have to"),
    ("want to", "would like to"), ("set up", "put in place"), ("reduce", "cut"),
    ("predictions", "outputs"), ("traffic", "load"), ("inference", "prediction"),
    ("track", "keep track of"), ("degrading", "getting worse"),
)  # fmt: skip


def test_other_words_for_the_same_thing_hardly_ever_change_an_answer():
    pairs = [
        (text, re.sub(rf"\b{word}\b", other, text, flags=re.IGNORECASE))
        for text in SEED
        for word, other in OTHER_WORDS
    ]
    pairs = [(text, said) for text, said in pairs if said != text]
    changed = [said for text, said in pairs if decision(said) != decision(text)]

    assert len(pairs) > 100
    assert len(changed) <= 0.05 * len(pairs), changed


@pytest.mark.parametrize("text", SEED)
@pytest.mark.parametrize("tool", TOOLS)
def test_naming_a_tool_changes_nothing(text, tool):
    if decision(text)[3] == "unknown-concern":
        pytest.skip("a text that says nothing may take its concern from the tool")

    assert decision(f"{text}. We use {tool}.") == decision(text)
    assert decision(f"{text} ({tool})") == decision(text)
    assert tool.casefold() in ask(f"{text} ({tool})").facts.tools


@given(st.sampled_from(SEED), st.text(max_size=40))
def test_any_answer_continues_or_is_refused(text, said):
    question = ask(text)
    if question.kind != "clarify":
        return
    assert answered_or_hinted(lambda: question.answer(said))


HELD_BACK = [item.text for item in load_corpus() if item.is_held_back][::6]


@pytest.mark.parametrize(("number", "text"), list(enumerate(HELD_BACK)))
def test_naming_a_tool_changes_no_problem_of_the_corpus(number, text):
    tool = TOOLS[number % len(TOOLS)]
    if decision(text)[3] == "unknown-concern":
        pytest.skip("a text that says nothing may take its concern from the tool")

    assert decision(f"{text}. We use {tool}.") == decision(text)
    assert decision(f"{text} ({tool})") == decision(text)
