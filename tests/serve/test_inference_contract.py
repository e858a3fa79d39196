"""The OpenAPI document is a promise: schemathesis tries to catch the server breaking it.

Longer, against a server of your own (docs/concepts/serving-hardness.md):

    schemathesis --config-file tests/serve/schemathesis.toml run URL/openapi.json -c all -n 200 \\
        -H "Authorization: Bearer TOKEN"
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import inference_models as models
from .conftest import serving
from .raw_http import RawClient, get, post

CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def described(wines, people, tmp_path_factory):
    """A server of three models, one of which nobody misses."""
    folder = tmp_path_factory.mktemp("server")
    spare = models.classifier_bundle(folder / "spare", name="spare")
    more = [f"people={people.path}", f"spare={spare.path}"]
    with serving(folder, wines, more=more) as handle:
        yield handle


def test_no_request_makes_the_server_break_its_description(described, tmp_path):
    pytest.importorskip("schemathesis")
    words = ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "1",
             "--seed", "4", "--continue-on-failure", "--warnings", "off",
             "--header", f"Authorization: Bearer {described.admin_token}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "run",
         f"{described.endpoint.url}/openapi.json", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 32" in done.stdout
    with described.client() as client:
        assert client.ready()


def test_a_stream_of_no_rows_is_a_whole_answer(described):
    item = {"name": "x", "datatype": "FP32", "shape": [0, 4], "data": []}
    body = json.dumps({"inputs": [item]}).encode()
    with RawClient(described.endpoint.url) as client:
        client.send(post("/v2/models/wines/infer_stream", body))
        assert client.answer().status in (200, 400)


def test_metrics_are_read_while_the_default_model_is_away(described):
    token = f"authorization: Bearer {described.admin_token}"
    with RawClient(described.endpoint.url) as client:
        for change in ("unload", "load"):
            client.send(post(f"/v2/repository/models/wines/{change}", b"{}", token))
            assert client.answer().status == 200
            client.send(get("/metrics"))
            answer = client.answer()
            assert answer.status == 200
            assert b"fairlead_requests_total" in answer.body


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v2/repository/models/spare/load", {"parameters": False}),
        ("/v2/repository/models/spare/load", {"parameters": {"bundle": {}}}),
        ("/v2/repository/models/spare/unload", {"parameters": []}),
        ("/predict", {"rows": [dict.fromkeys("abcd", 0)], "parameters": False}),
        ("/predict", {"rows": [dict.fromkeys("abcd", 0)], "id": 0}),
    ],
)
def test_what_is_empty_is_not_taken_for_what_is_missing(described, path, sent):
    token = f"authorization: Bearer {described.admin_token}"
    with RawClient(described.endpoint.url) as client:
        client.send(post(path, json.dumps(sent).encode(), token))
        assert client.answer().status == 400
