"""Models that answer piece by piece, over gRPC and as server-sent events."""

from __future__ import annotations

import json
import queue
import urllib.request
import warnings

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fairlead.core.dataset import Dataset
from tests.backends.pack_models import packed

from .conftest import serving

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    import tritonclient.grpc as triton

MODEL = '''
import time

import numpy as np


class Writer:
    """Says each word of a text, and may fail or never end."""

    inputs = {"text": "string"}

    def predict(self, inputs):
        words = inputs["text"][0].split()
        for number in range(10**9) if words[0] == "forever" else range(len(words)):
            if words[0] == "forever":
                time.sleep(0.01)
            word = words[number % len(words)]
            if word == "broken":
                raise ValueError("`broken` is no word")
            yield {"word": np.array([f"{word} "] * len(inputs["text"]), object)}
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    (folder / "writer.py").write_text(MODEL)
    data = Dataset({"text": np.array(["a few words", "and more"], object)})
    bundle = packed(folder, f"{folder / 'writer.py'}:Writer", data).noun
    with serving(folder, bundle, "writer", trust=True, settings={"grpc_port": 0}) as handle:
        yield handle


def text_input(text):
    array = np.array([text], object)
    item = triton.InferInput("text", [1], np_to_triton_dtype(array.dtype))
    item.set_data_from_numpy(array)
    return item


def words(result):
    return [word.decode().strip() for word in result.as_numpy("word")]


@pytest.fixture
def stream(server):
    answers = queue.Queue()
    with triton.InferenceServerClient(server.endpoint.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        yield client, answers
        client.stop_stream(cancel_requests=True)


def test_pieces_come_one_by_one_over_grpc(stream):
    client, answers = stream
    client.async_stream_infer(
        "writer", [text_input("one two three")], request_id="r",
        enable_empty_final_response=True,
    )  # fmt: skip
    found = []
    while True:
        result, error = answers.get(timeout=20)
        assert error is None
        response = result.get_response()
        assert response.id == "r"
        if response.parameters["triton_final_response"].bool_param:
            break
        found += words(result)
    assert found == ["one", "two", "three"]


def test_a_model_that_breaks_in_the_middle_says_so_and_the_stream_goes_on(stream):
    client, answers = stream
    client.async_stream_infer("writer", [text_input("one broken")], request_id="a")
    client.async_stream_infer("writer", [text_input("fine")], request_id="b")
    first, error, last = (answers.get(timeout=20) for _ in range(3))
    assert words(first[0]) == ["one"]
    assert "`broken` is no word" in str(error[1])
    assert words(last[0]) == ["fine"]


def test_one_call_gets_the_whole_answer(server):
    with triton.InferenceServerClient(server.endpoint.grpc) as client:
        answer = client.infer("writer", [text_input("all of it")])
        assert answer.as_numpy("word")[0].decode().split() == ["all", "of", "it"]
        with pytest.raises(InferenceServerException, match="no word"):
            client.infer("writer", [text_input("broken")])


def events(server, text):
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    request = urllib.request.Request(
        f"{server.endpoint.url}/v2/models/writer/infer_stream", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in answer.read().decode().strip().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines())
            yield lines.get("event", "message"), json.loads(lines["data"])


def test_pieces_come_as_events(server):
    found = list(events(server, "one two"))
    said = [data["outputs"][0]["data"][0].strip() for kind, data in found if kind == "message"]
    assert said == ["one", "two"]
    assert found[-1] == ("end", {"events": 2})
    kinds = [kind for kind, _ in events(server, "one broken")]
    assert kinds == ["message", "error"]


def test_a_client_that_leaves_ends_the_model(server):
    with triton.InferenceServerClient(server.endpoint.grpc) as client:
        answers = queue.Queue()
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer("writer", [text_input("forever")], request_id="long")
        assert answers.get(timeout=20)[1] is None
        client.stop_stream(cancel_requests=True)
    # The model takes one caller at a time: this one would wait for ever.
    with triton.InferenceServerClient(server.endpoint.grpc) as client:
        answer = client.infer("writer", [text_input("next")], client_timeout=20)
        assert answer.as_numpy("word")[0].decode().strip() == "next"
    with server.client() as ours:
        statuses = {item.id: item.status for item in ours.outcomes(limit=10_000).outcomes}
    assert statuses["long"] == 499
