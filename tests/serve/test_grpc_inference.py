"""The Open Inference Protocol over gRPC, asked by clients that are not ours."""

from __future__ import annotations

import asyncio
import queue
import warnings

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fairlead.backends.runners import open_runner

from .conftest import serving

with warnings.catch_warnings():
    # The client's generated code may be a major version behind the protobuf that is installed.
    warnings.simplefilter("ignore", UserWarning)
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio

GRPC = {"grpc_port": 0}


@pytest.fixture(scope="module")
def wines_grpc(wines, wines_candidate, tmp_path_factory):
    settings = {**GRPC, "max_body_bytes": 1 << 20}
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, wines, settings=settings, candidate=wines_candidate.path) as handle:
        yield handle


@pytest.fixture(scope="module")
def dtypes_grpc(dtypes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, dtypes, "dtypes", settings=GRPC) as handle:
        yield handle


@pytest.fixture
def client(wines_grpc):
    with triton.InferenceServerClient(wines_grpc.endpoint.grpc) as found:
        yield found


def tensor(name, array):
    item = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    item.set_data_from_numpy(array)
    return item


def rows(n=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def direct(bundle, feeds):
    runner = open_runner(bundle)
    outputs = runner.run(feeds)
    runner.close()
    return outputs


def raw_call(server, method, request, **options):
    """One unary call with nothing but gRPC's own client."""
    with grpc.insecure_channel(server.endpoint.grpc) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return call(request.SerializeToString(), timeout=10, **options)


def test_the_answer_is_the_bundles_own(wines, client):
    x = rows(5)
    answer = client.infer("wines", [tensor("x", x)], model_version=wines.version, request_id="r-7")
    expected = direct(wines, {"x": x})
    np.testing.assert_allclose(answer.as_numpy("scores"), expected["scores"], atol=1e-6)
    np.testing.assert_array_equal(answer.as_numpy("label"), expected["label"])
    response = answer.get_response()
    assert (response.id, response.model_version) == ("r-7", wines.version)
    assert response.parameters["fairlead-arm"].string_param == "baseline"


def test_only_the_outputs_that_are_asked_for_come_back(wines, client):
    wanted = [triton.InferRequestedOutput("scores")]
    answer = client.infer("wines", [tensor("x", rows())], outputs=wanted)
    assert [item.name for item in answer.get_response().outputs] == ["scores"]
    with pytest.raises(InferenceServerException, match="no output named `other`"):
        client.infer("wines", [tensor("x", rows())], outputs=[triton.InferRequestedOutput("other")])


def test_server_and_models_describe_themselves(wines, wines_candidate, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("wines", wines_candidate.version)
    assert client.get_server_metadata().name == "fairlead"
    model = client.get_model_metadata("wines")
    assert list(model.versions) == [wines.version, wines_candidate.version]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 4])]
    assert [t.datatype for t in model.outputs] == ["INT64", "FP32"]
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.is_model_ready("other")


def test_what_is_not_offered_says_why(client):
    for ask in (client.get_log_settings, client.get_trace_settings):
        with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*there is no method"):
            ask()


@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_requests_may_be_compressed(client, way):
    answer = client.infer("wines", [tensor("x", rows(64))], compression_algorithm=way)
    assert answer.as_numpy("label").shape == (64,)


@pytest.mark.parametrize(
    ("feeds", "code", "text"),
    [
        ({"x": rows()[:, :3]}, "INVALID_ARGUMENT", "shape"),
        ({"y": rows()}, "INVALID_ARGUMENT", "no input named `y`"),
        ({"x": rows().astype(str).astype(object)}, "INVALID_ARGUMENT", "dtype"),
        ({}, "INVALID_ARGUMENT", "missing"),
    ],
)
def test_wrong_tensors_are_refused(client, feeds, code, text):
    with pytest.raises(InferenceServerException, match=f"{code}.*{text}"):
        client.infer("wines", [tensor(name, array) for name, array in feeds.items()])


def test_unknown_models_versions_and_methods_are_not_found(wines_grpc, client):
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*no model 'other'"):
        client.infer("other", [tensor("x", rows())])
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*no version '9'"):
        client.infer("wines", [tensor("x", rows())], model_version="9")
    with pytest.raises(grpc.RpcError) as failed:
        raw_call(wines_grpc, "Nothing", triton.service_pb2.ServerLiveRequest())
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_that_is_too_large_is_refused_and_the_connection_goes_on(client):
    with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*1048576"):
        client.infer("wines", [tensor("x", rows(100_000))])
    assert client.infer("wines", [tensor("x", rows(50_000))]).as_numpy("label").shape == (50_000,)


def test_broken_protobuf_is_a_bad_argument(wines_grpc):
    with grpc.insecure_channel(wines_grpc.endpoint.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"\xff\xff\xff", timeout=10)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_deadline_ends_the_call(slow, tmp_path):
    x = [tensor("x", rows())]
    with (
        serving(tmp_path, slow, "slow", settings=GRPC) as server,
        triton.InferenceServerClient(server.endpoint.grpc) as client,
    ):
        with pytest.raises(InferenceServerException, match=r"DEADLINE_EXCEEDED|Deadline"):
            client.infer("slow", x, client_timeout=0.001)
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("slow", x, timeout=100)
        assert client.infer("slow", x).as_numpy("y").shape == (1, 1)


@pytest.mark.parametrize("is_raw", [True, False])
def test_every_datatype_survives_the_way_there_and_back(dtypes, dtypes_grpc, is_raw):
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
    if is_raw:
        with triton.InferenceServerClient(dtypes_grpc.endpoint.grpc) as client:
            answer = client.infer("dtypes", [tensor(n, a) for n, a in feeds.items()])
        found = {name: answer.as_numpy(f"{name}_out") for name in feeds}
        found["string"] = np.vectorize(bytes.decode, otypes=[object])(found["string"])
    else:
        found = typed_round_trip(dtypes_grpc, feeds)
    for name, array in feeds.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


FIELDS = {
    "bool": "bool_contents", "int8": "int_contents", "int16": "int_contents",
    "int32": "int_contents", "int64": "int64_contents", "uint8": "uint_contents",
    "uint16": "uint_contents", "uint32": "uint_contents", "uint64": "uint64_contents",
    "float32": "fp32_contents", "float64": "fp64_contents", "object": "bytes_contents",
}  # fmt: skip


def typed_round_trip(server, feeds):
    """Send typed contents; FP16 has none, so it makes the trip without a partner."""
    pb = triton.service_pb2
    request = pb.ModelInferRequest(model_name="dtypes")
    for name, array in feeds.items():
        kind = "float32" if name == "float16" else array.dtype.name
        values = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
        item = request.inputs.add(
            name=name,
            datatype=np_to_triton_dtype(np.dtype(kind)),
            shape=array.shape,
        )
        getattr(item.contents, FIELDS[kind]).extend(values)
    for name in feeds:
        if name != "float16":
            request.outputs.add(name=f"{name}_out")
    response = pb.ModelInferResponse.FromString(raw_call(server, "ModelInfer", request))
    assert not response.raw_output_contents
    found = {"float16": feeds["float16"]}
    for item in response.outputs:
        name = item.name.removesuffix("_out")
        values = list(getattr(item.contents, FIELDS[feeds[name].dtype.name]))
        if name == "string":
            values = [v.decode() for v in values]
        found[name] = np.array(values, feeds[name].dtype).reshape(tuple(item.shape))
    return found


def test_typed_contents_out_of_range_or_place_are_refused(dtypes_grpc, wines_grpc):
    pb = triton.service_pb2
    request = pb.ModelInferRequest(model_name="wines")
    item = request.inputs.add(name="x", datatype="INT8", shape=[1, 4])
    item.contents.int_contents.extend([1, 2, 3, 999])
    with pytest.raises(grpc.RpcError, match="beyond it"):
        raw_call(wines_grpc, "ModelInfer", request)
    item.datatype = "FP32"
    with pytest.raises(grpc.RpcError, match="put them into fp32_contents"):
        raw_call(wines_grpc, "ModelInfer", request)
    item.datatype = "FP16"
    with pytest.raises(grpc.RpcError, match="raw_input_contents"):
        raw_call(wines_grpc, "ModelInfer", request)


def test_many_calls_share_a_connection(wines, wines_grpc):
    async def ask():
        async with triton_aio.InferenceServerClient(wines_grpc.endpoint.grpc) as client:
            jobs = [
                client.infer("wines", [tensor("x", rows(1, seed))], model_version=wines.version)
                for seed in range(200)
            ]
            return await asyncio.gather(*jobs)

    for seed, answer in enumerate(asyncio.run(ask())):
        expected = direct(wines, {"x": rows(1, seed)})["scores"] if seed % 50 == 0 else None
        if expected is not None:
            np.testing.assert_allclose(answer.as_numpy("scores"), expected, atol=1e-5)


def test_a_stream_answers_in_order_and_survives_a_bad_request(wines, wines_grpc):
    answers = queue.Queue()
    with triton.InferenceServerClient(wines_grpc.endpoint.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for number in range(30):
            name = "x" if number != 7 else "y"
            client.async_stream_infer(
                "wines", [tensor(name, rows(1, number))], request_id=str(number)
            )
        found = [answers.get(timeout=20) for _ in range(30)]
        client.stop_stream()
    ids = [result.get_response().id for result, error in found if error is None]
    assert ids == [str(number) for number in range(30) if number != 7]
    assert "no input named `y`" in str(found[7][1])
    final = found[0][0].get_response().parameters["triton_final_response"]
    assert final.bool_param


def test_the_shadow_of_http_sees_the_same_service(wines_grpc, client):
    client.infer("wines", [tensor("x", rows())], request_id="over-grpc")
    with wines_grpc.client() as ours:
        page = ours.outcomes(limit=10_000)
        assert "over-grpc" in {outcome.id for outcome in page.outcomes}
        assert 'status="200"' in ours.metrics()


def test_calls_under_way_are_answered_before_the_server_ends_and_cancelled_ones_are_not(
    slow, tmp_path
):
    done, x = queue.Queue(), [tensor("x", rows())]

    def ended(result, error):
        done.put((result, error))

    settings = {**GRPC, "max_queue_delay_ms": 60_000.0}
    with serving(tmp_path, slow, "slow", settings=settings) as server:
        with triton.InferenceServerClient(server.endpoint.grpc) as client:
            client.infer("slow", x)
            calls = [
                client.async_infer("slow", x, callback=ended, request_id=f"{number}")
                for number in range(8)
            ]
            calls[7].cancel()
            first = done.get(timeout=30)
            server.process.terminate()
            found = [first, *(done.get(timeout=30) for _ in range(7))]
        assert server.process.wait(30) == 0
    errors = [str(error) for _, error in found if error is not None]
    assert len(errors) == 1
    assert "CANCELLED" in errors[0]
