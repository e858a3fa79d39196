"""`fairlead ask --batch`: JSON lines in, one JSON line per answer out."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from fairlead.api.routing import ask_lines
from fairlead.core.errors import UsageError

KEYS = {"id", "kind", "skills", "redirect_to", "ambiguity", "confidence"}


def write(folder, *lines):
    path = folder / "problems.jsonl"
    data = b"".join(
        line + b"\n" if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
        for line in lines
    )
    path.write_bytes(data)
    return path


@pytest.fixture
def batch(here):
    def answer(source, stdin=b""):
        return here("ask", "--batch", source, "--json", stdin=stdin)

    return answer


def test_every_problem_has_one_line(batch, tmp_path):
    path = write(
        tmp_path,
        {"id": "a", "text": "my inference is slow"},
        {"id": 7, "text": "quantize my model to int8"},
        {"id": "c", "text": "training does not converge"},
    )

    done = batch(path)

    assert done.returncode == 0
    assert [item["id"] for item in done.lines] == ["a", "7", "c"]
    assert [item["kind"] for item in done.lines] == ["clarify", "route", "redirect"]
    assert done.lines[0]["ambiguity"] == "model-or-infrastructure"
    assert done.lines[1]["skills"] == ["quantization-for-inference"]
    assert done.lines[2]["redirect_to"] == "training-optimization"
    for item in done.lines:
        assert set(item) >= KEYS
        assert 0 <= item["confidence"] <= 1


def test_every_turn_of_a_dialogue_has_one_line(batch, tmp_path):
    turns = ["my model is too slow", "inference", "not profiled yet"]
    path = write(tmp_path, {"id": "d", "turns": turns})

    done = batch(path)

    assert [item["id"] for item in done.lines] == ["d#1", "d#2", "d#3"]
    assert [item["kind"] for item in done.lines] == ["clarify", "clarify", "route"]


def test_lines_may_come_from_stdin(batch, tmp_path):
    done = batch("-", stdin=b'{"id": "1", "text": "serve my model"}\n')

    assert done.lines[0]["id"] == "1"


BAD = [
    b"not json",
    b'{"id": "x"}',
    b'{"text": "my model is slow"}',
    b'["my model is slow"]',
    b'{"id": "x", "text": 3}',
    b'{"id": "x", "turns": []}',
    b'{"id": "x", "turns": ["a", 1]}',
    b'{"id": "x", "text": "a", "turns": ["b"]}',
    b"\xff\xfe\x00garbage",
    b"[" * 100_000,
    b'{"id": ' + b"1" * 5000 + b', "text": "serve my model"}',
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_and_the_others_are_answered(line):
    good = b'{"id": "a", "text": "my inference is slow"}\n'

    before, error, after = ask_lines([good, b"\n", line, good])

    assert before == after
    assert isinstance(error, UsageError)
    assert error.message.startswith("line 3 ")
    assert error.hint


def test_every_bad_line_is_named_with_its_own_number(batch, tmp_path):
    path = write(tmp_path, b"x", {"id": "a", "text": "serve my model"}, b"\xff", b"", b"y")

    done = batch(path)

    assert done.returncode == 2
    assert [line.split()[2] for line in done.stderr.splitlines()[:3]] == ["1", "3", "5"]
    assert "3 lines of" in done.stderr
    assert "hint: " in done.stderr
    assert len(done.lines) == 1


def test_a_text_that_cannot_be_answered_keeps_its_id(batch, tmp_path):
    path = write(tmp_path, {"id": "empty", "text": ""}, {"id": "ok", "text": "serve my model"})

    done = batch(path)

    assert done.returncode == 2
    assert [(item["id"], item["kind"]) for item in done.lines] == [
        ("empty", "error"),
        ("ok", "route"),
    ]
    assert done.lines[0]["error"]


def test_an_id_that_cannot_be_printed_is_no_end(batch, tmp_path):
    path = write(tmp_path, b'{"id": "\\ud800", "text": "serve my model"}')

    assert batch(path).returncode == 0


def test_a_byte_order_mark_is_no_part_of_the_text(batch, tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbf{"id": "a", "text": "serve my model"}')

    assert batch(path).lines[0]["id"] == "a"


@pytest.mark.parametrize("source", ["missing.jsonl", ".", "x" * 5000])
def test_a_file_that_cannot_be_read_is_refused(batch, source):
    done = batch(source)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert done.lines == []


def test_nothing_to_answer_is_no_error(batch, tmp_path):
    done = batch(write(tmp_path, b"", b"   "))

    assert (done.returncode, done.lines) == (0, [])


def test_the_same_lines_give_the_same_bytes(batch, tmp_path):
    path = write(tmp_path, *({"id": n, "text": f"deploy model {n} safely"} for n in range(20)))

    assert batch(path).stdout == batch(path).stdout


def test_a_thousand_lines_take_seconds(batch, tmp_path):
    texts = ["my inference is slow on gpu", "monitor drift in production", "canary and rollback"]
    path = write(tmp_path, *({"id": n, "text": f"{texts[n % 3]} {n}"} for n in range(1000)))
    before = time.process_time()

    done = batch(path)

    assert len(done.lines) == 1000
    assert time.process_time() - before < 30


def test_people_get_one_line_each(here, tmp_path):
    path = write(tmp_path, {"id": "a", "text": "my inference is slow"})

    done = here("ask", "--batch", path, check=0)

    assert done.stdout.startswith("a\tclarify\tmodel-or-infrastructure\t")


def test_a_real_process_streams_its_answers(tmp_path):
    lines = b'{"id": "1", "text": "serve my model"}\nnonsense\n'
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "ask", "--batch", "-", "--json"],
        cwd=tmp_path, input=lines, capture_output=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 2
    assert json.loads(done.stdout)["id"] == "1"
    assert b"line 2" in done.stderr
