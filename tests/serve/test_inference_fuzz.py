"""Fuzzed binary bodies and fuzzed messages against a living server: refused, never broken."""

from __future__ import annotations

import json
import warnings

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import serving
from .raw_http import RawClient, post

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    from tritonclient.grpc import service_pb2

INFER = "/v2/models/people/infer"
CITY = b"\x04\x00\x00\x00Oslo"
AGE = np.array([[41.0]], np.float32).tobytes()
REFUSED = (400, 413, 415, 422)
POLITE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "UNIMPLEMENTED",
          "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}  # fmt: skip

odd = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4),
    st.lists(st.integers(-3, 9), max_size=4), st.just({}), st.just([[[]]]),
)  # fmt: skip
sizes = st.one_of(st.sampled_from([0, 1, 3, 4, 8, 12, 2**31, 2**64, -1]), odd)
item = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["city", "age", "other", ""]) | odd,
        "datatype": st.sampled_from(["BYTES", "FP32", "FP16", "BF16", "UINT64", "X"]) | odd,
        "shape": st.lists(st.sampled_from([0, 1, 2, 2**40, -1]), max_size=4) | odd,
        "parameters": st.fixed_dictionaries({"binary_data_size": sizes}) | odd,
    },
    optional={"data": odd},
)


@pytest.fixture(scope="module")
def fuzzed(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    limits = {"grpc_port": 0, "max_body_bytes": 1 << 20}
    with serving(folder, people, "people", settings=limits) as handle:
        yield handle


@pytest.fixture(scope="module")
def line(fuzzed):
    with RawClient(fuzzed.endpoint.url) as client:
        yield client


@pytest.fixture(scope="module")
def channel(fuzzed):
    with grpc.insecure_channel(fuzzed.endpoint.grpc) as channel:
        yield channel


def fuzz(n):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=n, deadline=None, suppress_health_check=checks, derandomize=True)


def right() -> tuple[bytes, bytes]:
    """A JSON header and the bytes behind it that are an honest request."""
    inputs = [
        {"name": "city", "datatype": "BYTES", "shape": [1, 1],
         "parameters": {"binary_data_size": len(CITY)}},
        {"name": "age", "datatype": "FP32", "shape": [1, 1],
         "parameters": {"binary_data_size": len(AGE)}},
    ]  # fmt: skip
    return json.dumps({"inputs": inputs}).encode(), CITY + AGE


def answer_to(line, body, length):
    line.send(post(INFER, body, f"Inference-Header-Content-Length: {length}"))
    found = line.answer()
    assert found is not None, body
    return found


def is_well(line):
    """The connection, and the server behind it, still give right answers."""
    head, tail = right()
    outputs = answer_to(line, head + tail, len(head)).json["outputs"]
    return [item["data"] for item in outputs] == [["Oslo"], [42.0]]


@fuzz(150)
@given(
    inputs=st.lists(item, max_size=3) | odd, tail=st.binary(max_size=40),
    more=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), odd),
    off=st.sampled_from([0, 0, 0, 1, -1, 5]),
)  # fmt: skip
def test_headers_that_lie_are_refused(line, inputs, tail, more, off):
    head = json.dumps({"inputs": inputs, **more}).encode()
    found = answer_to(line, head + tail, max(0, len(head) + off))
    assert found.status in REFUSED, found.body
    assert found.json["error"]
    assert found.json["hint"]


@fuzz(150)
@given(data=st.data())
def test_bytes_that_were_a_request_are_refused_or_answered(line, data):
    head, tail = right()
    raw = bytearray(head + tail)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    found = answer_to(line, bytes(raw), len(head))
    assert found.status in (200, *REFUSED), (bytes(raw), found.body)
    json.loads(found.body)


def test_the_server_is_well_after_all_that(line):
    assert is_well(line)


def message() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="people", id="q")
    for name, kind, raw in (("city", "BYTES", CITY), ("age", "FP32", AGE)):
        request.inputs.add(name=name, datatype=kind, shape=[1, 1])
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


def status_of(channel, method, raw) -> str:
    try:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(raw, timeout=20)
    except grpc.RpcError as exc:
        return exc.code().name
    return "OK"


@fuzz(200)
@given(data=st.data(), method=st.sampled_from(["ModelInfer", "ModelMetadata", "RepositoryIndex"]))
def test_messages_that_were_right_are_refused_or_answered(channel, data, method):
    raw = bytearray(message())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    assert status_of(channel, method, bytes(raw)) in POLITE, bytes(raw)


@fuzz(100)
@given(raw=st.binary(max_size=200))
def test_messages_of_noise_are_refused_or_answered(channel, raw):
    assert status_of(channel, "ModelInfer", raw) in POLITE - {"OK"}, raw


def test_calls_are_answered_after_all_that(channel):
    assert status_of(channel, "ModelInfer", message()) == "OK"
