"""Calls that are served together get the answers that they would get alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.serve.inference.arms import open_arm
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.grpc.known_messages import KnownMessages
from fairlead.serve.inference.grpc.messages import read_request
from fairlead.serve.inference.grpc.schema import schema

from . import inference_models as models
from .conftest import serving

grpcclient = pytest.importorskip("tritonclient.grpc")

PATIENCE_S = 60


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    bundle = models.classifier_bundle(tmp_path_factory.mktemp("arm") / "bundle")
    opened = open_arm("baseline", bundle, ServingConfig(), cores=1)
    yield opened
    opened.close()


def kind():
    return schema().messages["inference.ModelInferRequest"]


def request_of(rows, *, request_id="", outputs=(), parameters=False, version=""):
    request = kind()(model_name="wines", model_version=version, id=request_id)
    request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    for name in outputs:
        request.outputs.add(name=name)
    if parameters:
        request.parameters["timeout"].int64_param = 10_000_000
    request.raw_input_contents.append(rows.tobytes())
    return request


def learned(arm, request):
    known = KnownMessages(kind())
    known.learn(request.SerializeToString(), request, read_request(request), arm)
    return known


ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize("first_id", ["", "abc", "x" * 120])
@pytest.mark.parametrize("outputs", [(), ("scores",)])
def test_another_id_and_other_numbers_are_found_again(arm, first_id, outputs):
    known = learned(arm, request_of(ROWS, request_id=first_id, outputs=outputs, version="7"))
    for request_id in ("", "other", "y" * 127):
        raw = request_of(ROWS * 3, request_id=request_id, outputs=outputs, version="7")
        message, found_id, contents = known.find(raw.SerializeToString())
        assert (found_id, contents) == (request_id, (ROWS * 3).tobytes())
        assert (message.n_rows, message.version, message.outputs) == (2, "7", outputs or None)
        assert message.arm() is arm


def test_what_differs_in_anything_else_is_not_taken_for_it(arm):
    known = learned(arm, request_of(ROWS, request_id="abc"))
    others = [
        request_of(ROWS[:1], request_id="abc"),
        request_of(ROWS, outputs=("scores",)),
        request_of(ROWS, parameters=True),
        request_of(ROWS, version="7"),
        request_of(ROWS, request_id="z" * 128),
        request_of(ROWS.reshape(4, 2)),
    ]
    for other in others:
        assert known.find(other.SerializeToString()) is None
    raw = request_of(ROWS, request_id="abc").SerializeToString()
    for broken in (raw[:-1], raw + b"\0", raw[1:], b"", raw.replace(b"abc", b"\xff\xfe\xfd")):
        assert known.find(broken) is None


def test_only_what_the_model_takes_as_it_is_is_learned(arm):
    doubles = kind()(model_name="wines")
    doubles.inputs.add(name="x", datatype="FP64", shape=(1, 4))
    doubles.raw_input_contents.append(bytes(32))
    for request in (doubles, request_of(ROWS, parameters=True)):
        assert learned(arm, request).find(request.SerializeToString()) is None


def test_many_clients_at_once_get_their_own_answers(wines, tmp_path):
    wrong = []
    runner = OnnxRunner(wines.path / "model.onnx")

    def press(url, seed):
        draw = np.random.default_rng(seed)
        with grpcclient.InferenceServerClient(url) as client:
            for number in range(40):
                rows = draw.normal(size=(1 + number % 2, 4)).astype(np.float32)
                asked = grpcclient.InferInput("x", list(rows.shape), "FP32")
                asked.set_data_from_numpy(rows)
                wanted = [grpcclient.InferRequestedOutput("scores")] if seed % 2 else None
                request_id = f"{seed}-{number}"
                answer = client.infer(
                    "wines", [asked], request_id=request_id, outputs=wanted,
                    client_timeout=PATIENCE_S if seed % 3 else None,
                )  # fmt: skip
                scores = answer.as_numpy("scores")
                expected = runner.run({"x": rows})["scores"]
                has_label = answer.as_numpy("label") is not None
                is_right = np.allclose(scores, expected, atol=1e-5) and has_label == (not seed % 2)
                if not is_right or answer.get_response().id != request_id:
                    wrong.append(request_id)

    with serving(tmp_path, wines, settings={"grpc_port": 0}) as handle:
        url = handle.endpoint.grpc
        threads = [threading.Thread(target=press, args=(url, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
