"""`fairlead ask`: one answer, a dialogue, bad input."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

SLOW = "my inference is slow"


def test_a_route_lists_plain_ids_in_order_and_why(here):
    document = here(
        "ask", "quantize my model to int8 and serve it over REST", "--json", check=0
    ).json

    assert document["kind"] == "route"
    assert document["skills"] == ["quantization-for-inference", "model-serving-patterns"]
    assert [step["skill"] for step in document["steps"]] == document["skills"]
    assert all(step["reason"] for step in document["steps"])
    assert 0 <= document["confidence"] <= 1


def test_a_question_carries_its_options(here):
    document = here("ask", SLOW, "--json", check=0).json

    assert document["kind"] == "clarify"
    assert document["ambiguity"] == "model-or-infrastructure"
    assert [option["number"] for option in document["options"]] == [1, 2, 3]


def test_without_a_terminal_the_question_is_the_answer(here):
    done = here("ask", SLOW, check=0)

    assert "1. Not profiled yet" in done.stdout


def test_a_question_that_can_be_measured_says_how(here):
    assert "--measure with --model" in here("ask", SLOW, check=0).stdout
    assert "--measure" not in here("ask", "I need to deploy my model", check=0).stdout


def test_further_lines_are_indented_under_what_they_belong_to(here):
    shown = here("ask", SLOW, check=0, env={"COLUMNS": "50"}).stdout.splitlines()

    first = next(at for at, line in enumerate(shown) if line.startswith("  3. Profiled"))
    assert shown[first + 1].startswith("     ")
    assert all(len(line) <= 50 for line in shown)
    assert shown == [line.rstrip() for line in shown]


def test_a_redirect_says_each_thing_once(here):
    shown = here("ask", "training diverges", check=0).stdout

    assert "\n  Come back once the model is trained" in shown
    assert shown.casefold().count("come back") == 1
    assert "because" not in shown


def test_answers_follow_one_another(here):
    words = ("ask", "my model is too slow", "-a", "inference", "--answer", "not profiled yet")
    document = here(*words, "--json", check=0).json

    assert document["skills"][0] == "production-debugging-techniques"
    assert document["answers"] == ["inference", "not-profiled"]


def test_an_answer_that_fits_no_option_is_refused(here):
    done = here("ask", SLOW, "-a", "purple", check=2)

    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert done.stdout == ""


def test_an_answer_too_many_is_refused(here):
    assert "hint: " in here("ask", SLOW, "-a", "1", "-a", "2", check=2).stderr


def test_the_text_may_come_from_stdin(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "ask", "-", "--json"],
        input=SLOW.encode(), cwd=tmp_path, capture_output=True, check=True, timeout=60,
    )  # fmt: skip

    assert b'"model-or-infrastructure"' in done.stdout


@pytest.mark.parametrize("words", [[""], ["   "], ["12 34 !!"], []])
def test_a_text_without_words_is_refused(here, words):
    done = here("ask", *words, check=2)

    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 500, bytes(range(256)) * 20, b"x" * 1_000_000, "wörd ".encode() * 200_000],
    ids=["nothing", "zeros", "binary", "1 MB", "1 MB of words"],
)
def test_what_cannot_be_read_from_stdin_is_refused(here, data):
    done = here("ask", "-", stdin=data, check=2)

    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_text_that_is_too_long_is_refused(here):
    done = here("ask", "slow model " * 11_000, check=2)

    assert "limit is 100,000" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (SLOW, "--batch", "x.jsonl"),
        ("--batch", "x.jsonl", "-a", "1"),
        ("--batch", "x.jsonl", "--measure"),
        ("--batch", "x.jsonl", "--correct", "model-serving-patterns"),
        ("--correct", "model-serving-patterns", "-a", "1"),
    ],
)
def test_options_that_exclude_each_other_are_refused(here, words):
    assert "stands alone" in here("ask", *words, check=2).stderr


def test_an_unknown_option_names_the_help(here):
    assert "fairlead ask --help" in here("ask", SLOW, "--modle", "x", check=2).stderr


def test_asking_loads_no_heavy_library(tmp_path):
    code = (
        "import sys\nfrom fairlead.entrypoints.cli import main\n"
        f"try:\n    main(['ask', {SLOW!r}, '--json'])\n"
        "except SystemExit as exc:\n    assert not exc.code\n"
        "heavy = {'sqlalchemy', 'pyarrow', 'onnxruntime', 'scipy', 'sklearn', 'starlette'}\n"
        "sys.stderr.write(','.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stderr == ""


class Terminal:
    """A person at a terminal, talking to one process."""

    def __init__(self, *words, cwd):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairlead", *words],
            stdin=slave, stdout=slave, stderr=slave, cwd=cwd, close_fds=True,
            env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def until(self, words, timeout=30):
        while words not in self.seen:
            ready, _, _ = select.select([self.master], [], [], timeout)
            assert ready, self.seen
            try:
                piece = os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                piece = ""
            assert piece, self.seen
            self.seen += piece
        before, self.seen = self.seen.split(words, 1)
        return before

    def say(self, line):
        os.write(self.master, line.encode())

    def end(self):
        text = self.seen
        while select.select([self.master], [], [], 30)[0]:
            try:
                piece = os.read(self.master, 4096)
            except OSError:
                break
            if not piece:
                break
            text += piece.decode(errors="replace")
        code = self.process.wait(30)
        os.close(self.master)
        return code, text


PROMPT = "in your words): "


@pytest.fixture
def sit_down(tmp_path):
    people = []

    def start(*words):
        people.append(Terminal(*words, cwd=tmp_path))
        return people[-1]

    yield start
    for person in people:
        person.process.kill()
        person.process.wait()


def test_a_dialogue_at_a_terminal_ends_in_a_route(sit_down):
    person = sit_down("ask", "my model is too slow")

    shown = person.until(PROMPT)
    assert "1. Inference" in shown
    assert "2. Training" in shown
    person.say("1\n")
    assert "Profiled: the model itself" in person.until(PROMPT)
    person.say("the model itself\n")
    code, rest = person.end()

    assert code == 0
    assert "1. hardware-optimization-strategies" in rest


def test_an_answer_that_does_not_fit_is_asked_again(sit_down):
    person = sit_down("ask", SLOW)

    person.until(PROMPT)
    person.say("purple\n")
    assert "purple" in person.until(PROMPT)
    person.say("9\n")
    person.until(PROMPT)
    person.say("3\n")
    code, rest = person.end()

    assert code == 0
    assert "model-serving-patterns" in rest


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["ctrl-c", "ctrl-d"])
def test_a_person_may_leave_the_dialogue(sit_down, key):
    person = sit_down("ask", SLOW)

    person.until(PROMPT)
    # A key that comes before the terminal is read is lost, as it is for people: press it again.
    for _ in range(5):
        person.say(key)
        with suppress(subprocess.TimeoutExpired):
            person.process.wait(6)
            break
    code, rest = person.end()

    assert code == 130
    assert "Traceback" not in rest
    assert "\nerror: interrupted" in rest.replace("\r", "")


def test_json_never_prompts(sit_down):
    code, text = sit_down("ask", SLOW, "--json").end()

    assert code == 0
    assert text.strip().startswith("{")
