"""The Open Inference Protocol and plain JSON, asked by real clients."""

from __future__ import annotations

import gzip
import json
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from fairlead.backends.endpoint import EndpointClient
from fairlead.backends.openinference import datatype_of
from fairlead.backends.runners import open_runner
from fairlead.core.errors import DataError, NotFoundError

ROW = {"a": 1.0, "b": 2.0, "c": -1.0, "d": 0.5}


@pytest.fixture
def ask(wines_server):
    """Send raw bytes; returns status, headers and parsed body."""

    def send(path, body=None, *, method=None, headers=None):
        request = urllib.request.Request(
            wines_server.endpoint.url + path, data=body, method=method, headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, json.loads(error.read())

    return send


@pytest.fixture
def foreign(wines_server):
    client = triton.InferenceServerClient(wines_server.endpoint.url.removeprefix("http://"))
    yield client
    client.close()


def infer_body(**changes):
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return json.dumps({"inputs": [{**item, **changes}]}).encode()


def triton_input(name, array, *, binary=True):
    kind = "BYTES" if array.dtype.kind == "O" else datatype_of(array.dtype.name)
    item = triton.InferInput(name, list(array.shape), kind)
    item.set_data_from_numpy(array, binary_data=binary)
    return item


def direct(bundle, feeds):
    runner = open_runner(bundle)
    outputs = runner.run(feeds)
    runner.close()
    return outputs


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritonclient_gets_the_bundles_own_answer(wines, foreign, binary_in, binary_out):
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    wanted = [triton.InferRequestedOutput(n, binary_data=binary_out) for n in ("scores", "label")]
    answer = foreign.infer("wines", [triton_input("x", x, binary=binary_in)], outputs=wanted)
    expected = direct(wines, {"x": x})
    np.testing.assert_allclose(answer.as_numpy("scores"), expected["scores"], atol=1e-6)
    np.testing.assert_array_equal(answer.as_numpy("label"), expected["label"])


def test_tritonclient_sees_a_live_ready_and_described_model(wines, foreign):
    assert foreign.is_server_live()
    assert foreign.is_server_ready()
    assert foreign.is_model_ready("wines")
    assert foreign.is_model_ready("wines", wines.version)
    assert not foreign.is_model_ready("other")
    assert "binary_tensor_data" in foreign.get_server_metadata()["extensions"]
    model = foreign.get_model_metadata("wines")
    assert model["versions"] == [wines.version]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [output["datatype"] for output in model["outputs"]] == ["INT64", "FP32"]


def test_tritonclient_may_compress_its_request(wines, foreign):
    x = np.ones((64, 4), np.float32)
    for way in ("gzip", "deflate"):
        answer = foreign.infer("wines", [triton_input("x", x)], request_compression_algorithm=way)
        assert answer.as_numpy("label").shape == (64,)


def test_request_id_and_version_come_back(wines, foreign):
    x = np.ones((1, 4), np.float32)
    answer = foreign.infer(
        "wines", [triton_input("x", x)], request_id="r-7", model_version=wines.version
    ).get_response()
    assert (answer["id"], answer["model_version"]) == ("r-7", wines.version)


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_survives_the_way_there_and_back(dtypes_server, dtypes, binary):
    client = triton.InferenceServerClient(dtypes_server.endpoint.url.removeprefix("http://"))
    feeds = {}
    for spec in dtypes.signature.inputs:
        if spec.dtype == "string":
            feeds[spec.name] = np.array([["é☃", ""], ["a\nb", "x" * 300]], object)
        elif spec.dtype == "bool":
            feeds[spec.name] = np.array([[True, False], [False, True]])
        elif spec.dtype.startswith("float"):
            feeds[spec.name] = np.array([[1.5, -2.25], [0.0, 3.0]], spec.dtype)
        else:
            info = np.iinfo(spec.dtype)
            feeds[spec.name] = np.array([[info.min, info.max], [1, 2]], spec.dtype)
    is_json_able = {n: binary or n != "float16" for n in feeds}  # the client has no JSON for FP16
    inputs = [triton_input(n, a, binary=binary or not is_json_able[n]) for n, a in feeds.items()]
    wanted = [
        triton.InferRequestedOutput(f"{n}_out", binary_data=binary or not is_json_able[n])
        for n in feeds
    ]
    answer = client.infer("dtypes", inputs, outputs=wanted)
    client.close()
    for name, array in feeds.items():
        found = answer.as_numpy(f"{name}_out")
        if array.dtype.kind == "O":
            found = np.array(
                [[v.decode() if isinstance(v, bytes) else v for v in r] for r in found]
            )
        assert found.tolist() == array.tolist(), name


def test_text_columns_by_tritonclient_and_by_rows(people_server):
    client = triton.InferenceServerClient(people_server.endpoint.url.removeprefix("http://"))
    city = np.array([["Ålesund"], ["Rome"]], object)
    age = np.array([[1], [2]], np.float32)
    answer = client.infer("people", [triton_input("city", city), triton_input("age", age)])
    client.close()
    assert [v.decode() for v in answer.as_numpy("echo").ravel()] == ["Ålesund", "Rome"]
    with people_server.client() as own:
        with_null = own.predict([{"city": None, "age": None}, {"city": "x", "age": 2}])
    assert [row["prediction"] for row in with_null["predictions"]] == [None, 3.0]


def test_nested_and_flat_json_mean_the_same(ask):
    flat = ask("/v2/models/wines/infer", infer_body(shape=[2, 4], data=list(range(8))))
    nested = ask(
        "/v2/models/wines/infer", infer_body(shape=[2, 4], data=[[0, 1, 2, 3], [4, 5, 6, 7]])
    )
    assert flat[0] == nested[0] == 200
    assert flat[2]["outputs"] == nested[2]["outputs"]
    assert flat[1]["fairlead-arm"] == "baseline"


def test_integers_and_halves_are_cast_to_what_the_model_takes(ask):
    whole = ask("/v2/models/wines/infer", infer_body(datatype="INT64"))
    assert whole[0] == 200
    assert whole[2]["outputs"] == ask("/v2/models/wines/infer", infer_body())[2]["outputs"]


def test_predict_gives_labels_and_scores_by_class(ask, wines):
    status, headers, answer = ask("/predict", json.dumps({"rows": [ROW, ROW], "id": "me"}).encode())
    assert status == 200
    assert headers["fairlead-version"] == wines.version == answer["version"]
    assert answer["id"] == "me"
    own = direct(wines, {"x": np.array([[1, 2, -1, 0.5]], np.float32)})
    first = answer["predictions"][0]
    assert first["prediction"] == int(own["label"][0])
    assert list(first["scores"]) == ["0", "1", "2"]
    assert list(first["scores"].values()) == pytest.approx(own["scores"][0].tolist())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "empty"),
        ("x", "list of rows"),
        ([{"a": 1, "b": 2, "c": 3}], "lacks `d`"),
        ([{**ROW, "e": 1}], "unknown `e`"),
        ([{**ROW, "a": "tall"}], "'tall'"),
        ([{**ROW, "a": "7"}], "'7'"),
        ([{**ROW, "a": {"b": 1}}], "object"),
        ([ROW, 5], "mixes"),
        ([{**ROW, "a": [1, 2]}, {**ROW, "a": [1]}], "different lengths"),
    ],
)
def test_predict_says_what_is_wrong_with_a_row(ask, rows, words):
    status, _, answer = ask("/predict", json.dumps({"rows": rows}).encode())
    assert status == 400
    assert words in answer["error"]
    assert answer["hint"]


def test_predict_ignores_the_label_and_reads_dates_and_lists(ask):
    labelled = ask("/predict", json.dumps({"rows": [{**ROW, "kind": 2}]}).encode())
    assert labelled[0] == 200
    dated = ask("/predict", json.dumps({"rows": [{**ROW, "a": "2024-05-01T10:00:00Z"}]}).encode())
    assert dated[0] == 200
    listed = ask("/predict", json.dumps({"rows": [list(ROW.values())]}).encode())
    assert (
        listed[2]["predictions"]
        == ask("/predict", json.dumps({"rows": [ROW]}).encode())[2]["predictions"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [1, 3], "data": [1, 2, 3]}, "shape [1, 3]"),
        ({"shape": [4]}, "shape [4]"),
        ({"shape": [2, 4]}, "4 values"),
        ({"shape": [0, 4], "data": []}, "no rows"),
        ({"shape": [-1, 4]}, "list of sizes"),
        ({"shape": "4"}, "list of sizes"),
        ({"shape": [1, 2**70]}, "list of sizes"),
        ({"datatype": "FP99"}, "FP99"),
        ({"datatype": ["FP32"]}, "datatype"),
        ({"datatype": "BYTES", "data": ["a", "b", "c", "d"]}, "dtype object"),
        ({"name": "y"}, "no input named `y`"),
        ({"data": ["1", "2", "3", "4"]}, "holds '1'"),
        ({"data": [1, 2, 3, 1e300]}, "1e+300"),
        ({"data": [[1, 2], [3]]}, "ragged"),
        ({"datatype": "INT8", "data": [1, 2, 3, 300]}, "300"),
        ({"datatype": "INT64", "data": [1, 2, 3, 0.5]}, "0.5"),
        ({"datatype": "INT64", "data": [1, 2, 3, None]}, "null"),
        ({"parameters": {"binary_data_size": 16}}, "data as well"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared_memory_region"),
        ({"parameters": 5}, "parameters"),
    ],
)
def test_wrong_tensors_are_refused_with_a_hint(ask, changes, words):
    status, _, answer = ask("/v2/models/wines/infer", infer_body(**changes))
    assert status == 400
    assert words in answer["error"]
    assert answer["hint"]


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff garbage", b"[]", b"{}", b'{"inputs": []}', b'{"inputs": [5]}', b"[" * 5000,
     b'{"inputs": {}}', json.dumps({"inputs": [{"name": "x"}]}).encode(),
     json.dumps({"inputs": [], "outputs": 5}).encode()],
)  # fmt: skip
def test_garbage_is_refused_with_a_hint(ask, body):
    status, _, answer = ask("/v2/models/wines/infer", body)
    assert status == 400
    assert answer["error"]
    assert answer["hint"]


@pytest.mark.parametrize("length", ["99999", "-1", "x", "3", ""])
def test_a_wrong_header_length_is_refused(ask, length):
    headers = {"Inference-Header-Content-Length": length}
    status, _, answer = ask("/v2/models/wines/infer", infer_body(), headers=headers)
    assert status == 400
    assert answer["hint"]


def test_truncated_and_oversized_binary_tensors_are_refused(ask):
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, 4],
                    "parameters": {"binary_data_size": 16},
                }
            ]
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    whole = head + np.ones(4, np.float32).tobytes()
    assert ask("/v2/models/wines/infer", whole, headers=headers)[0] == 200
    for body in (whole[:-1], head, whole + b"more"):
        status, _, answer = ask("/v2/models/wines/infer", body, headers=headers)
        assert status == 400
        assert "bytes" in answer["error"]


def test_an_unknown_output_is_refused_before_the_model_runs(ask):
    body = json.loads(infer_body())
    body["outputs"] = [{"name": "nope"}]
    status, _, answer = ask("/v2/models/wines/infer", json.dumps(body).encode())
    assert status == 400
    assert "`label`" in answer["hint"]


def test_unknown_model_version_and_path_are_404(ask, foreign):
    assert ask("/v2/models/other/infer", infer_body())[0] == 404
    status, _, answer = ask("/v2/models/wines/versions/9/infer", infer_body())
    assert status == 404
    assert "its versions are" in answer["hint"]
    assert ask("/nope")[0] == 404
    assert ask("/predict")[0] == 405
    with pytest.raises(InferenceServerException, match="no model"):
        foreign.get_model_metadata("other")


def test_a_body_over_the_limit_is_413_also_when_compressed(ask):
    big = json.dumps({"rows": ["x" * (2 << 20)]}).encode()
    status, _, answer = ask("/predict", big)
    assert status == 413
    assert "max_body_bytes" in answer["hint"]
    packed = gzip.compress(big)
    assert len(packed) < 10_000
    assert ask("/predict", packed, headers={"Content-Encoding": "gzip"})[0] == 413
    half = gzip.compress(b'{"rows": []}')[:-6]
    assert ask("/predict", half, headers={"Content-Encoding": "gzip"})[0] == 400
    assert ask("/predict", b"x", headers={"Content-Encoding": "br"})[0] == 415


def test_sixteen_threads_each_get_the_answer_to_their_own_input(wines_server, wines):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(480, 4)).astype(np.float32)
    expected = direct(wines, {"x": x})["scores"]

    def many(start):
        client = EndpointClient(wines_server.endpoint.url, "wines")
        found = [client.infer({"x": x[i : i + 1]}, id=str(i)) for i in range(start, 480, 16)]
        client.close()
        return [(int(r.id), r.outputs["scores"][0]) for r in found]

    with ThreadPoolExecutor(16) as pool:
        answers = [answer for part in pool.map(many, range(16)) for answer in part]
    assert sorted(i for i, _ in answers) == list(range(480))
    for i, scores in answers:
        np.testing.assert_allclose(scores, expected[i], atol=1e-6)


def test_more_rows_than_a_batch_holds_are_answered_in_order(wines_server, wines):
    x = np.random.default_rng(4).normal(size=(1000, 4)).astype(np.float32)
    client = wines_server.client()
    answer = client.infer({"x": x})
    client.close()
    expected = direct(wines, {"x": x})["scores"]
    np.testing.assert_allclose(answer.outputs["scores"], expected, atol=1e-6)


def test_our_client_turns_statuses_into_errors(wines_server):
    client = wines_server.client()
    assert client.ready()
    assert client.metadata()["name"] == "wines"
    with pytest.raises(DataError, match="shape"):
        client.infer({"x": np.ones((1, 3), np.float32)})
    with pytest.raises(NotFoundError, match="version"):
        client.infer({"x": np.ones((1, 4), np.float32)}, version="nope")
    client.close()


def test_metrics_count_what_was_asked(wines_server):
    client = wines_server.client()
    name = 'fairlead_requests_total{arm="baseline",model="wines",status="200"'

    def count():
        found = re.search(re.escape(name) + r".*} (\S+)", client.metrics())
        return float(found[1]) if found else 0.0

    before = count()
    for _ in range(3):
        client.infer({"x": np.ones((2, 4), np.float32)})
    assert count() - before == 3
    text = client.metrics()
    client.close()
    assert 'fairlead_request_duration_seconds_bucket{arm="baseline",le="+Inf"' in text
    assert "fairlead_predictions_dropped_total 0.0" in text
    assert 'fairlead_traffic_weight{arm="baseline",model="wines"} 1.0' in text
