import time

import pytest

from fairlead.core.errors import UsageError
from fairlead.router import ask
from fairlead.router.text import read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\t",
        "????",
        "1234 5678",
        "\x00\x01\x02\x03deploy",
        "\ufffd\ufffd\ufffd abc",
        "\ud800 model",
    ],
    ids=["empty", "blank", "marks", "digits", "control", "replacement", "surrogate"],
)
def test_a_text_that_says_nothing_is_refused_with_a_hint(text):
    with pytest.raises(UsageError) as caught:
        ask(text)

    assert caught.value.hint


def test_a_megabyte_is_refused_at_once():
    started = time.perf_counter()

    with pytest.raises(UsageError, match="1,000,000"):
        ask("slow " * 200_000)

    assert time.perf_counter() - started < 0.2


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "my model is slow " * 5_800, "?! " * 30_000 + "deploy", "推論が遅い" * 19_000],
)
def test_the_longest_text_is_answered_quickly(text):
    ask("warm up")
    started = time.process_time()

    ask(text)

    assert time.process_time() - started < 0.5


def test_the_beginning_and_the_end_of_a_long_log_are_read():
    log = "2024-01-01 INFO line of a log\n" * 2_000

    assert ask(f"quantize the model\n{log}").skill_ids == ("quantization-for-inference",)
    assert "quantization-for-inference" in ask(f"{log}\nquantize the model").skill_ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hi team, it is slow. Thank you so much!", "it is slow"),
        ("GOOD MORNING everybody\nit is slow", "it is slow"),
        ("Can you please help me out? it is slow, any pointers would be great", "it is slow"),
        ("hello world example", "hello world example"),
        ("could someone help me quantize it", "could someone help me quantize it"),
        ("problem with regards to latency", "problem with regards to latency"),
        ("Thanks!", "Thanks"),
    ],
)
def test_greetings_and_thanks_are_not_read(text, words):
    reading = read(text)
    seen = [text[a:b] for a, b in zip(reading.starts, reading.ends, strict=True)]

    assert " ".join(seen) == words
    assert reading.text == text
