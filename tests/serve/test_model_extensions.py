"""Triton's configuration and statistics extensions, read by Triton's own clients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from .conftest import serving

with warnings.catch_warnings():
    # Generated code may be a major version behind the protobuf that is installed.
    warnings.simplefilter("ignore", UserWarning)
    import tritonclient.grpc as over_grpc
    import tritonclient.http as over_http
    from tritonclient.utils import InferenceServerException

ROWS = np.array([[1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 0.0, 3.0]], np.float32)


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def server(request, wines, people, tmp_path_factory):
    settings = {"grpc_port": 0, "workers": request.param}
    more = (f"people={people.path}",)
    with serving(tmp_path_factory.mktemp("server"), wines, more=more, settings=settings) as handle:
        yield handle


@pytest.fixture
def web(server):
    with over_http.InferenceServerClient(server.endpoint.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def rpc(server):
    with over_grpc.InferenceServerClient(server.endpoint.grpc) as client:
        yield client


def question(kind, rows):
    tensor = kind.InferInput("x", rows.shape, "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def numbers(document):
    """Whole numbers as such: protobuf writes those of 64 bits as text."""
    if isinstance(document, dict):
        return {name: numbers(value) for name, value in document.items()}
    if isinstance(document, list):
        return [numbers(item) for item in document]
    is_number = isinstance(document, str) and document.lstrip("-").isdigit()
    return int(document) if is_number else document


def test_the_configuration_says_how_a_model_is_batched_and_what_it_takes(server, web, rpc, wines):
    config = web.get_model_config("wines")
    assert (config["name"], config["platform"]) == ("wines", "onnxruntime_onnx")
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 16
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert {"name": "label", "data_type": "TYPE_INT64", "dims": []} in config["output"]
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 1024
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["instance_group"][0]["count"] >= 1
    assert config["version_policy"] == {"all": {}}
    assert config["parameters"]["version"] == {"string_value": wines.version}
    assert not config["model_transaction_policy"]["decoupled"]
    told = rpc.get_model_config("wines").config
    assert told.max_batch_size == 16
    assert list(told.input[0].dims) == [4]
    assert told.WhichOneof("scheduling_choice") == "dynamic_batching"
    document = numbers(rpc.get_model_config("wines", as_json=True)["config"])
    for key in ("name", "platform", "backend", "max_batch_size", "input"):
        assert document[key] == config[key]
    assert web.get_model_config("people")["input"][0]["data_type"] == "TYPE_STRING"
    assert web.get_model_config("wines", wines.version) == config


def test_a_model_that_is_not_there_has_neither(web, rpc):
    for client in (web, rpc):
        with pytest.raises(InferenceServerException, match="no model"):
            client.get_model_config("nobody")
        with pytest.raises(InferenceServerException, match="no model"):
            client.get_inference_statistics("nobody")
        with pytest.raises(InferenceServerException, match="no version"):
            client.get_inference_statistics("wines", "7")


def statistics(client, model):
    (found,) = numbers(client.get_inference_statistics(model)["model_stats"])
    return found


def test_statistics_count_what_was_asked(web, rpc, wines):
    before = statistics(web, "wines")
    for _ in range(10):
        web.infer("wines", question(over_http, ROWS))
        rpc.infer("wines", question(over_grpc, ROWS[:1]))
    wrong = question(over_http, ROWS[:, :3])
    with pytest.raises(InferenceServerException):
        web.infer("wines", wrong)
    after = statistics(web, "wines")
    assert (after["name"], after["version"]) == ("wines", wines.version)
    assert after["inference_count"] - before["inference_count"] == 30
    runs = after["execution_count"] - before["execution_count"]
    assert runs == 20  # They came one after the other.
    assert after["last_inference"] > before["last_inference"]
    spent = after["inference_stats"]
    for kind, count in (("success", 20), ("queue", 20), ("compute_infer", 20), ("fail", 1)):
        assert spent[kind]["count"] - before["inference_stats"][kind]["count"] == count
    parts = sum(spent[part]["ns"] for part in ("queue", "compute_input", "compute_infer"))
    assert parts == pytest.approx(spent["success"]["ns"], rel=0.01)
    assert 0 < spent["compute_infer"]["ns"] < spent["success"]["ns"]
    sizes = {batch["batch_size"]: batch["compute_infer"] for batch in after["batch_stats"]}
    assert sizes[1]["count"] >= 10
    assert sizes[2]["count"] >= 10
    assert sum(batch["count"] for batch in sizes.values()) == after["execution_count"]


def test_both_transports_tell_the_same(web, rpc):
    rpc.infer("wines", question(over_grpc, ROWS))
    told = rpc.get_inference_statistics("wines").model_stats[0]
    found = statistics(web, "wines")
    assert told.inference_count == found["inference_count"]
    assert told.inference_stats.success.ns == found["inference_stats"]["success"]["ns"]
    assert told.batch_stats[0].compute_infer.count > 0
    names = {entry["name"] for entry in web.get_inference_statistics()["model_stats"]}
    assert names == {"wines", "people"}
    assert {entry.name for entry in rpc.get_inference_statistics().model_stats} == names
