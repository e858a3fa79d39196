"""Clients that close, or only stop to send, while a slow model is busy with somebody else."""

from __future__ import annotations

import json
import re
import socket
import threading

import numpy as np
import pytest

from fairlead.core.dataset import Dataset
from tests.backends.pack_models import packed

from .conftest import serving
from .raw_http import RawClient, post
from .test_workers import until

MODEL = '''
import pathlib
import time

import numpy as np


class Gate:
    """Writes down what it is asked, and answers 1.0 only when the gate is open."""

    inputs = {"x": "float32[?]"}
    outputs = {"y": "float32[?]"}

    def load(self, context):
        self.folder = pathlib.Path((context / "folder.txt").read_text())

    def predict(self, inputs):
        for x in inputs["x"]:
            with (self.folder / "ran.txt").open("a") as file:
                file.write(f"{x:g} ")
            while x == 1 and not (self.folder / "open").exists():
                time.sleep(0.01)
        return {"y": inputs["x"]}
'''
INFER = "/v2/models/gate/infer"


@pytest.fixture
def gate(tmp_path):
    (tmp_path / "gate.py").write_text(MODEL)
    (tmp_path / "folder.txt").write_text(str(tmp_path))
    (tmp_path / "open").touch()
    bundle = packed(
        tmp_path,
        f"{tmp_path / 'gate.py'}:Gate",
        Dataset({"x": np.array([2, 3], np.float32)}),
        include=[tmp_path / "folder.txt"],
    ).noun
    settings = {"max_queue_delay_ms": 60_000.0, "request_timeout_s": 300.0}
    with serving(tmp_path, bundle, "gate", trust=True, settings=settings) as handle:
        (tmp_path / "open").unlink()
        (tmp_path / "ran.txt").write_text("")
        yield handle, tmp_path


def body(x):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [x]}
    return json.dumps({"inputs": [tensor]}).encode()


def pending(handle):
    with handle.client() as client:
        [found] = re.findall(r"fairlead_pending_requests\{[^}]*\} ([\d.]+)", client.metrics())
    return float(found)


def test_what_nobody_waits_for_is_not_run_and_who_only_stopped_to_send_is_answered(gate):
    handle, folder = gate
    url = handle.endpoint.url
    with RawClient(url, 120) as first, RawClient(url, 120) as patient:
        first.send(post(INFER, body(1)))
        until(lambda: (folder / "ran.txt").read_text() == "1 ", "the model is busy")
        with RawClient(url) as gone:
            gone.send(post(INFER, body(5)))
            until(lambda: pending(handle) == 2, "it waits")
        until(lambda: pending(handle) == 1, "it is known that nobody waits")
        patient.send(post(INFER, body(6)))
        until(lambda: pending(handle) == 2, "it waits")
        patient.link.shutdown(socket.SHUT_WR)
        answers = []
        reader = threading.Thread(target=lambda: answers.append(final(patient)))
        reader.start()
        (folder / "open").touch()
        assert final(first).status == 200
        reader.join(120)
        assert answers[0].json["outputs"][0]["data"] == [6.0]
    assert (folder / "ran.txt").read_text().split() == ["1", "6"]


def final(client):
    """The answer behind the interim ones."""
    answer = client.answer()
    while answer.status == 100:
        answer = client.answer()
    return answer
