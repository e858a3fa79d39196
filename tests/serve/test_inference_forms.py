"""MLflow's bodies, server-sent events, the repository, deadlines and the description."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest

from fairlead.backends.runners import open_runner
from fairlead.core.bfloat16 import numbers_of
from fairlead.serve.inference.json_tensors import tensor_from_json

from .conftest import serving
from .raw_http import RawClient, post

ROW = {"a": 1.0, "b": 2.0, "c": -1.0, "d": 0.5}
NAMES = list(ROW)
VALUES = list(ROW.values())


@pytest.fixture
def ask(wines_server):
    def send(path, body=None, *, method=None, headers=None):
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            wines_server.endpoint.url + path, data=raw, method=method, headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return send


@pytest.fixture(scope="module")
def label(wines):
    runner = open_runner(wines)
    found = runner.run({"x": np.array([VALUES], np.float32)})["label"].tolist()
    runner.close()
    return found[0]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ({"dataframe_split": {"columns": NAMES, "data": [VALUES, VALUES]}}, "application/json"),
        ({"dataframe_split": {"index": [0, 1], "columns": NAMES[::-1],
                              "data": [VALUES[::-1]] * 2}}, "application/json"),
        ({"dataframe_records": [ROW, ROW]}, "application/json; charset=utf-8"),
        ({"instances": [ROW, ROW]}, "application/json"),
        ({"instances": [VALUES, VALUES]}, "application/json"),
        ({"inputs": [VALUES, VALUES]}, "application/json"),
        ({"inputs": {"x": [VALUES, VALUES]}}, "application/json"),
        ({"inputs": {name: [value, value] for name, value in ROW.items()}}, "application/json"),
        (f"{','.join(NAMES)}\n1,2,-1,0.5\r\n1,2,-1,.5\n".encode(), "text/csv"),
    ],
)  # fmt: skip
def test_every_form_of_mlflow_gives_one_prediction_per_row(ask, label, body, content_type):
    status, headers, raw = ask("/invocations", body, headers={"Content-Type": content_type})
    assert status == 200, raw
    assert json.loads(raw) == {"predictions": [label, label]}
    assert headers["fairlead-arm"] == "baseline"


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        ({}, "application/json", "none of the forms"),
        ({"instances": [VALUES], "inputs": [VALUES]}, "application/json", "instances, inputs"),
        ({"instances": 5}, "application/json", "no list"),
        ({"dataframe_split": {"columns": NAMES}}, "application/json", "lacks columns or data"),
        ({"dataframe_split": {"columns": NAMES, "data": [[1]]}}, "application/json", "row 0"),
        ({"dataframe_records": [{"a": 1}]}, "application/json", "lacks"),
        ({"inputs": {"a": [1], "b": [1, 2], "c": [1], "d": [1]}}, "application/json", "lengths"),
        ({"inputs": {"x": 5}}, "application/json", "no list"),
        (b"a,b,c,d\n1,2,3\n", "text/csv", "row 0 of the CSV"),
        (b"a,b,c,d\n1,2,3,tall\n", "text/csv", "tall"),
        (b"\xff", "text/csv", "UTF-8"),
        (b'a,b\n"1,2', "text/csv", "CSV"),
        (b"", "text/csv", "empty"),
    ],
)
def test_what_is_none_of_the_forms_is_refused_with_a_hint(ask, body, content_type, words):
    status, _, raw = ask("/invocations", body, headers={"Content-Type": content_type})
    assert status == 400, raw
    answer = json.loads(raw)
    assert words in answer["error"]
    assert answer["hint"]


def test_rows_of_a_named_model_and_pings(ask):
    assert json.loads(ask("/predict/wines", {"rows": [ROW]})[2])["model"] == "wines"
    assert ask("/predict/other", {"rows": [ROW]})[0] == 404
    assert [ask(path)[0] for path in ("/ping", "/health", "/version")] == [200, 200, 200]


def events_of(raw):
    found = []
    for block in raw.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event", "message"), json.loads(lines["data"])))
    return found


def test_a_stream_gives_one_event_per_row_in_order(ask, wines):
    x = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    item = {"name": "x", "datatype": "FP32", "shape": [150, 4], "data": x.ravel().tolist()}
    status, headers, raw = ask("/v2/models/wines/infer_stream", {"id": "s", "inputs": [item]})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    *rows, last = events_of(raw)
    assert last[0] == "end"
    assert [row["id"] for _, row in rows] == [f"s#{i}" for i in range(150)]
    runner = open_runner(wines)
    expected = runner.run({"x": x})["label"]
    runner.close()
    assert [row["outputs"][0]["data"][0] for _, row in rows] == expected.tolist()


def test_a_stream_that_cannot_begin_is_a_plain_refusal(ask):
    item = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    status, _, raw = ask("/v2/models/wines/infer_stream", {"inputs": [item]})
    assert status == 400
    assert "shape" in json.loads(raw)["error"]
    body = {"inputs": [{**item, "shape": [1, 4], "data": VALUES}],
            "parameters": {"binary_data_output": True}}  # fmt: skip
    assert ask("/v2/models/wines/infer_stream", body)[0] == 400


def test_a_stream_that_began_is_not_refused_in_the_middle(slow, tmp_path):
    """Rows of one request wait for room among themselves; only its first one may find none."""
    settings = {"max_pending_requests": 2, "max_batch_size": 1}
    item = {
        "name": "x",
        "datatype": "FP32",
        "shape": [12, 4],
        "data": [float(i) for i in range(48)],
    }
    with serving(tmp_path, slow, "slow", settings=settings) as handle, handle.client() as client:
        request = urllib.request.Request(
            f"{handle.endpoint.url}/v2/models/slow/infer_stream",
            json.dumps({"id": "s", "inputs": [item]}).encode(),
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            *rows, last = events_of(answer.read())
        statuses = [outcome.status for outcome in client.outcomes().outcomes]
    assert last == ("end", {"events": 12})
    assert [row["id"] for _, row in rows] == [f"s#{row}" for row in range(12)]
    assert set(statuses) == {200}


def test_the_repository_lists_unloads_and_loads(wines, tmp_path):
    with serving(tmp_path, wines) as handle:

        def post_to(path, body=b""):
            request = urllib.request.Request(handle.endpoint.url + path, data=body, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status, json.loads(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.loads(error.read())

        infer = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": VALUES}]}
        ).encode()
        entry = {"name": "wines", "version": wines.version, "state": "READY", "reason": ""}
        assert post_to("/v2/repository/index") == (200, [entry])
        assert post_to("/v2/repository/models/wines/unload", b"{}") == (200, {})
        assert post_to("/v2/models/wines/infer", infer)[0] == 503
        assert post_to("/v2/repository/index", b'{"ready": true}') == (200, [])
        assert post_to("/v2/repository/models/wines/load") == (200, {})
        assert post_to("/v2/models/wines/infer", infer)[0] == 200
        assert post_to("/v2/repository/models/other/load")[0] == 404
        assert post_to("/v2/repository/models/wines/load", b'{"parameters": 5}')[0] == 400


def test_a_deadline_in_the_header_or_as_a_parameter_is_honoured(slow, tmp_path):
    row = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    many = {"name": "x", "datatype": "FP32", "shape": [64, 4], "data": [1.0] * 256}
    with (
        serving(
            tmp_path, slow, "slow", settings={"max_batch_size": 1, "request_timeout_s": 600}
        ) as handle,
        RawClient(handle.endpoint.url, timeout=300) as long,
        RawClient(handle.endpoint.url, timeout=60) as short,
    ):
        path = "/v2/models/slow/infer"
        long.send(post(path, json.dumps({"inputs": [many], "id": "long"}).encode()))
        body = json.dumps({"inputs": [row], "id": "header"}).encode()
        short.send(post(path, body, "x-request-timeout-ms: 1"))
        assert short.answer().status in {503, 504}
        document = {"inputs": [row], "id": "parameter", "parameters": {"timeout": 1000}}
        short.send(post(path, json.dumps(document).encode()))
        assert short.answer().status in {503, 504}
        for wrong in ({"timeout": "soon"}, {"timeout": -1}, {"priority": -1}, {"priority": "x"}):
            document = {"inputs": [row], "parameters": wrong}
            short.send(post(path, json.dumps(document).encode()))
            assert short.answer().status == 400
        assert long.answer().status == 200
        with handle.client() as client:
            ran = {o.id for o in client.outcomes().outcomes if o.status == 200}
    assert ran == {"long"}


def test_bfloat16_numbers_are_read_and_rounded():
    found = tensor_from_json([1.0, -2.5, 3.14159, None], name="x", datatype="BF16", shape=(4,))
    assert found.dtype == np.uint16
    back = numbers_of(found)
    np.testing.assert_allclose(back[:3], [1.0, -2.5, 3.140625])
    assert np.isnan(back[3])


def test_the_description_names_every_endpoint_and_all_its_references_exist(ask):
    status, _, raw = ask("/openapi.json")
    document = json.loads(raw)
    assert status == 200
    schemas = document["components"]["schemas"]
    named = set(re.findall(r"#/components/schemas/(\w+)", raw.decode()))
    assert named <= set(schemas)
    operations = [op for methods in document["paths"].values() for op in methods.values()]
    names = [op["operationId"] for op in operations]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        if path.endswith("load"):
            continue  # other tests of this module need the model
        place = path.replace("{model}", "wines").replace("{version}", "none")
        for method in methods:
            found = ask(place, b"" if method != "get" else None, method=method.upper())[0]
            assert str(found) in methods[method]["responses"], (method, path, found)
    example = schemas["InferRequest"]["examples"][0]
    assert ask("/v2/models/wines/infer", example)[0] == 200
    page = ask("/docs")
    assert page[1]["content-type"].startswith("text/html")
    assert b"/v2/models/{model}/infer" in page[2]
