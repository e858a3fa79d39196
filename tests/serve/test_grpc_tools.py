"""gRPC's own tools: health checks and reflection, with gRPC's own clients."""

from __future__ import annotations

import warnings

import grpc
import pytest

from .conftest import serving

with warnings.catch_warnings():
    # Generated code may be a major version behind the protobuf that is installed.
    warnings.simplefilter("ignore", UserWarning)
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )


@pytest.fixture(scope="module")
def server(wines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, wines, settings={"grpc_port": 0}) as handle:
        yield handle


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.endpoint.grpc) as found:
        yield found


@pytest.mark.parametrize("name", ["", "inference.GRPCInferenceService", "wines"])
def test_the_server_its_service_and_its_models_are_healthy(channel, name):
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_an_unknown_service_is_not_found(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as failed:
        stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_watcher_hears_that_a_model_is_unloaded(server, channel):
    states = health_pb2.HealthCheckResponse
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service="wines"), timeout=30
    )
    assert next(watch).status == states.SERVING
    change = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
    order = b"\x12\x05wines"  # model_name = 2
    with pytest.raises(grpc.RpcError) as refused:
        change(order, timeout=10, metadata=[("authorization", "Bearer wrong")])
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    token = [("authorization", f"Bearer {server.admin_token}")]
    change(order, timeout=10, metadata=token)
    assert next(watch).status == states.NOT_SERVING
    load = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
    load(order, timeout=30, metadata=token)
    assert next(watch).status == states.SERVING
    watch.cancel()


def test_reflection_lists_services_and_describes_their_messages(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    kind = GetMessageClass(service.methods_by_name["ModelReady"].input_type)
    ready = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
    assert ready(kind(name="wines").SerializeToString(), timeout=10) == b"\x08\x01"
    with pytest.raises(KeyError):
        pool.FindServiceByName("inference.Other")
