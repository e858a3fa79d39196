"""bfloat16 end to end: ONNX Runtime takes bits that numpy cannot name, clients send them."""

from __future__ import annotations

import json
import urllib.request
import warnings

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.endpoint import EndpointClient
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bfloat16 import bits_of, numbers_of
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec, conform

from . import inference_models as models
from .conftest import serving

with warnings.catch_warnings():
    # Generated code may be a major version behind the protobuf that is installed.
    warnings.simplefilter("ignore", UserWarning)
    import tritonclient.grpc as over_grpc
    import tritonclient.http as over_http

HALF = ml_dtypes.bfloat16
WEIGHTS = np.array([[1.0], [0.5], [-2.0], [0.25]], np.float32)
ROWS = np.array([[1, 2, 3, 4], [0.1, -0.2, 100.5, 1e30], [3, 3, 3, 3]], HALF)


def expected(rows):
    """The model by hand: numbers are widened, multiplied, and rounded once."""
    return (rows.astype(np.float32) @ WEIGHTS).astype(HALF)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Takes and gives bfloat16, and computes in float32; a second input and output are not it."""
    kind, texts = TensorProto.BFLOAT16, TensorProto.STRING
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["wide", "W"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=kind),
        helper.make_node("Cast", ["tag"], ["same_tag"], to=texts),
    ]
    model = models.save_model(
        nodes,
        [models.value("x", kind, ["n", 4]), models.value("tag", TensorProto.INT64, ["n", 1])],
        [models.value("y", kind, ["n", 1]), models.value("same_tag", texts, ["n", 1])],
        [numpy_helper.from_array(WEIGHTS, "W")],
    )  # fmt: skip
    specs = [("x", "bfloat16", 4), ("tag", "int64", 1)], [("y", "bfloat16", 1)]
    inputs, outputs = (
        tuple(TensorSpec(name=n, dtype=d, shape=(-1, size)) for n, d, size in found)
        for found in specs
    )
    outputs += (TensorSpec(name="same_tag", dtype="string", shape=(-1, 1)),)
    return models.pack_model(
        tmp_path_factory.mktemp("half") / "bundle",
        model,
        Signature(inputs=inputs, outputs=outputs),
        profile=ReferenceProfile(n_rows=0, columns=()),
        name="half",
        task="regression",
        prediction_output="y",
    )


@pytest.fixture(scope="module")
def server(half, tmp_path_factory):
    settings = {"grpc_port": 0}
    with serving(tmp_path_factory.mktemp("server"), half, "half", settings=settings) as handle:
        yield handle


def question(kind, rows):
    x = kind.InferInput("x", list(rows.shape), "BF16")
    x.set_data_from_numpy(rows)
    tag = kind.InferInput("tag", [len(rows), 1], "INT64")
    tag.set_data_from_numpy(np.full((len(rows), 1), 7, np.int64))
    return [x, tag]


def test_triton_clients_send_and_read_it_in_binary(server):
    with over_http.InferenceServerClient(server.endpoint.url.removeprefix("http://")) as client:
        answer = client.infer("half", question(over_http, ROWS))
        metadata = client.get_model_metadata("half")
        assert client.get_model_config("half")["input"][0]["data_type"] == "TYPE_BF16"
    assert metadata["inputs"][0]["datatype"] == metadata["outputs"][0]["datatype"] == "BF16"
    assert answer.get_output("y")["datatype"] == "BF16"
    found = answer.as_numpy("y")
    assert found.astype(HALF).tobytes() == expected(ROWS).tobytes()
    with over_grpc.InferenceServerClient(server.endpoint.grpc) as client:
        answer = client.infer("half", question(over_grpc, ROWS))
    assert answer.as_numpy("y").astype(HALF).tobytes() == expected(ROWS).tobytes()
    assert answer.as_numpy("same_tag").tolist() == [[b"7"]] * 3


def post(server, path, document):
    request = urllib.request.Request(
        server.endpoint.url + path,
        data=json.dumps(document).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_people_send_and_read_numbers(server):
    rows = [[1.0, 2.0, 3.0, 4.0], [0.1, -0.2, 100.5, 7.0]]
    right = expected(np.array(rows, HALF)).astype(np.float32).ravel().tolist()
    inputs = [
        {"name": "x", "datatype": "BF16", "shape": [2, 4], "data": rows},
        {"name": "tag", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]},
    ]
    answer = post(server, "/v2/models/half/infer", {"inputs": inputs})
    (found,) = [tensor for tensor in answer["outputs"] if tensor["name"] == "y"]
    assert (found["datatype"], found["data"]) == ("BF16", right)
    document = {"rows": [{"x": row, "tag": 1} for row in rows]}
    answer = post(server, "/predict", document)
    assert [row["prediction"] for row in answer["predictions"]] == right
    # Wider numbers are rounded, as they would be by the client.
    inputs[0]["datatype"] = "FP32"
    answer = post(server, "/v2/models/half/infer", {"inputs": inputs})
    assert answer["outputs"][0]["data"] == right


def test_outcomes_are_numbers_not_bits(server):
    with EndpointClient(server.endpoint.url, "half", admin_token=server.admin_token) as client:
        before = client.outcomes(limit=10_000).next
        feeds = {"x": np.ones((1, 4), np.float32), "tag": np.ones((1, 1), np.int64)}
        answer = client.infer(feeds, id="one")
        (told,) = client.outcomes(after=before).outcomes
    assert numbers_of(answer.outputs["y"]).tolist() == [[-0.25]]
    assert (told.id, told.prediction) == ("one", -0.25)


@pytest.mark.parametrize("binds", [False, True])
def test_requests_of_several_clients_run_together(half, binds):
    runner = OnnxRunner(
        half.path / "model.onnx", RuntimeSettings(intra_op_threads=1, io_binding=binds)
    )
    for count in (0, 1, 5, 2):
        rows = np.resize(ROWS, (count, 4))
        feeds = {"x": rows.view(np.uint16), "tag": np.ones((count, 1), np.int64)}
        found = runner.run(feeds)["y"]
        assert (found.dtype, found.shape) == (np.uint16, (count, 1))
        assert found.tobytes() == expected(rows).tobytes()


def mixed_model(gives):
    """Takes text and bfloat16, and gives both back, the latter as another kind."""
    return models.save_model(
        [helper.make_node("Cast", ["x"], ["y"], to=gives),
         helper.make_node("Identity", ["text"], ["same"])],
        [models.value("x", TensorProto.BFLOAT16, ["n", 1]),
         models.value("text", TensorProto.STRING, ["n", 1])],
        [models.value("y", gives, ["n", 1]),
         models.value("same", TensorProto.STRING, ["n", 1])],
    )  # fmt: skip


def test_text_beside_it_goes_in_but_the_way_out_is_refused_with_a_reason():
    feeds = {"x": np.array([[1.5]], np.float32), "text": np.array([["é"]], object)}
    found = OnnxRunner(mixed_model(TensorProto.FLOAT)).run(feeds)
    assert (found["y"].tolist(), found["same"].tolist()) == ([[1.5]], [["é"]])
    with pytest.raises(ModelError, match="takes text and gives bfloat16"):
        OnnxRunner(mixed_model(TensorProto.BFLOAT16))


def test_numbers_are_rounded_to_the_nearest():
    values = np.concatenate(
        [np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-38, 38, 0.076)[:1000],
         [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45]]
    ).astype(np.float32)  # fmt: skip
    theirs = values.astype(HALF)
    ours = bits_of(values)
    is_nan = np.isnan(values)
    assert (ours[~is_nan] == theirs[~is_nan].view(np.uint16)).all()
    assert np.isnan(numbers_of(ours[is_nan])).all()
    spec = Signature(inputs=(TensorSpec(name="x", dtype="bfloat16", shape=(-1,)),), outputs=())
    for given in (values, values.astype(np.float64), theirs, ours):
        with np.errstate(over="ignore"):
            assert (conform({"x": given}, spec)["x"][~is_nan] == ours[~is_nan]).all()
    assert numbers_of(conform({"x": np.arange(3)}, spec)["x"]).tolist() == [0.0, 1.0, 2.0]
