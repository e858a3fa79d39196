import json
import time

import pytest

from fairlead.core.errors import UsageError
from fairlead.router import ask_batch


def test_one_line_per_problem():
    [found] = ask_batch([json.dumps({"id": "a", "text": "quantize and serve the model"})])

    assert found["id"] == "a"
    assert found["kind"] == "route"
    assert found["skills"] == ["quantization-for-inference", "model-serving-patterns"]
    assert found["redirect_to"] is None
    assert found["ambiguity"] is None
    assert 0 <= found["confidence"] <= 1
    json.dumps(found)


def test_a_dialogue_gives_one_line_per_turn():
    turns = ["my model is too slow", "inference", "not profiled yet"]

    found = list(ask_batch([{"id": 7, "turns": turns}]))

    assert [item["id"] for item in found] == ["7#1", "7#2", "7#3"]
    assert [item["ambiguity"] for item in found] == [
        "speed-inference-or-training",
        "model-or-infrastructure",
        None,
    ]
    assert found[2]["skills"] == ["production-debugging-techniques"]


def test_a_turn_that_answers_no_question_adds_to_the_text():
    found = list(
        ask_batch([{"id": "d", "turns": ["quantize the model", "and serve it as an API"]}])
    )

    assert found[1]["skills"] == ["quantization-for-inference", "model-serving-patterns"]


def test_an_unreadable_text_does_not_stop_the_others():
    first, second = ask_batch([{"id": 1, "text": " "}, "", {"id": 2, "text": "prune the model"}])

    assert first["kind"] == "error"
    assert first["hint"]
    assert second["skills"] == ["model-compression-techniques"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"text": "a"}', '{"id": 1}', '{"id": 1, "turns": []}', '{"id": 1, "turns": [2]}',
     '{"id": true, "text": "a"}', '{"id": null, "text": "a"}',
     '{"id": 1, "text": 3}', '{"id": 1, "text": "a", "turns": ["b"]}', "[" * 100_000],
)  # fmt: skip
def test_a_line_of_another_form_is_refused_with_its_number(line):
    with pytest.raises(UsageError, match="line 2"):
        list(ask_batch([{"id": 0, "text": "prune"}, line]))


def test_a_thousand_lines_take_seconds():
    short = [{"id": at, "text": f"my model is slow in production {at}"} for at in range(800)]
    odd = [{"id": at, "text": f"my zebra model number {at} is slow"} for at in range(800, 1000)]
    lines = [*short, *odd]
    started = time.process_time()

    assert len(list(ask_batch(lines))) == 1000

    assert time.process_time() - started < 60
