"""The messages and services that are spoken over gRPC, built when the server starts.

The numbers of the fields are those that clients of the Open Inference Protocol (V2), of its
repository and streaming extensions, and of gRPC's health and reflection services send. They live
in a descriptor pool of their own, so that a client library in the same process, which brings the
same messages, does no harm.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fairlead.core.extras import requires
from fairlead.serve.inference.grpc.extension_messages import (
    EXTENSION_ENUMS,
    EXTENSION_MESSAGES,
    EXTENSION_ONEOFS,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["INFERENCE", "Message", "Rpc", "Schema", "schema"]

Message: TypeAlias = Any
"""A protobuf message, whose class is made at run time."""

INFERENCE = "inference.GRPCInferenceService"

_EMPTY: tuple[str, ...] = ()
_NAME_VERSION = ("string name = 1", "string version = 2")
_TENSOR = (
    "string name = 1",
    "string datatype = 2",
    "repeated int64 shape = 3",
    "map<InferParameter> parameters = 4",
    "InferTensorContents contents = 5",
)
_REPOSITORY_ORDER = (
    "string repository_name = 1",
    "string model_name = 2",
    "map<ModelRepositoryParameter> parameters = 3",
)

_INFERENCE_MESSAGES: dict[str, tuple[str, ...]] = {
    "InferParameter": (
        "oneof bool bool_param = 1",
        "oneof int64 int64_param = 2",
        "oneof string string_param = 3",
        "oneof double double_param = 4",
        "oneof uint64 uint64_param = 5",
    ),
    "ModelRepositoryParameter": (
        "oneof bool bool_param = 1",
        "oneof int64 int64_param = 2",
        "oneof string string_param = 3",
        "oneof bytes bytes_param = 4",
    ),
    "InferTensorContents": (
        "repeated bool bool_contents = 1",
        "repeated int32 int_contents = 2",
        "repeated int64 int64_contents = 3",
        "repeated uint32 uint_contents = 4",
        "repeated uint64 uint64_contents = 5",
        "repeated float fp32_contents = 6",
        "repeated double fp64_contents = 7",
        "repeated bytes bytes_contents = 8",
    ),
    "ServerLiveRequest": _EMPTY,
    "ServerLiveResponse": ("bool live = 1",),
    "ServerReadyRequest": _EMPTY,
    "ServerReadyResponse": ("bool ready = 1",),
    "ModelReadyRequest": _NAME_VERSION,
    "ModelReadyResponse": ("bool ready = 1",),
    "ServerMetadataRequest": _EMPTY,
    "ServerMetadataResponse": (*_NAME_VERSION, "repeated string extensions = 3"),
    "ModelMetadataRequest": _NAME_VERSION,
    "ModelMetadataResponse": (
        "string name = 1",
        "repeated string versions = 2",
        "string platform = 3",
        "repeated ModelMetadataResponse.TensorMetadata inputs = 4",
        "repeated ModelMetadataResponse.TensorMetadata outputs = 5",
    ),
    "ModelMetadataResponse.TensorMetadata": _TENSOR[:3],
    "ModelInferRequest": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        "map<InferParameter> parameters = 4",
        "repeated ModelInferRequest.InferInputTensor inputs = 5",
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6",
        "repeated bytes raw_input_contents = 7",
    ),
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": (
        "string name = 1",
        "map<InferParameter> parameters = 2",
    ),
    "ModelInferResponse": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        "map<InferParameter> parameters = 4",
        "repeated ModelInferResponse.InferOutputTensor outputs = 5",
        "repeated bytes raw_output_contents = 6",
    ),
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelStreamInferResponse": (
        "string error_message = 1",
        "ModelInferResponse infer_response = 2",
    ),
    **EXTENSION_MESSAGES,
    "RepositoryIndexRequest": ("string repository_name = 1", "bool ready = 2"),
    "RepositoryIndexResponse": ("repeated RepositoryIndexResponse.ModelIndex models = 1",),
    "RepositoryIndexResponse.ModelIndex": (*_NAME_VERSION, "string state = 3", "string reason = 4"),
    "RepositoryModelLoadRequest": _REPOSITORY_ORDER,
    "RepositoryModelLoadResponse": _EMPTY,
    "RepositoryModelUnloadRequest": _REPOSITORY_ORDER,
    "RepositoryModelUnloadResponse": _EMPTY,
}

_HEALTH_MESSAGES: dict[str, tuple[str, ...]] = {
    "HealthCheckRequest": ("string service = 1",),
    "HealthCheckResponse": ("HealthCheckResponse.ServingStatus status = 1",),
}
_ENUMS: dict[str, tuple[str, ...]] = {
    "HealthCheckResponse.ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"),
    **EXTENSION_ENUMS,
}

_REFLECTION_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerReflectionRequest": (
        "string host = 1",
        "oneof string file_by_filename = 3",
        "oneof string file_containing_symbol = 4",
        "oneof ExtensionRequest file_containing_extension = 5",
        "oneof string all_extension_numbers_of_type = 6",
        "oneof string list_services = 7",
    ),
    "ExtensionRequest": ("string containing_type = 1", "int32 extension_number = 2"),
    "ServerReflectionResponse": (
        "string valid_host = 1",
        "ServerReflectionRequest original_request = 2",
        "oneof FileDescriptorResponse file_descriptor_response = 4",
        "oneof ExtensionNumberResponse all_extension_numbers_response = 5",
        "oneof ListServiceResponse list_services_response = 6",
        "oneof ErrorResponse error_response = 7",
    ),
    "FileDescriptorResponse": ("repeated bytes file_descriptor_proto = 1",),
    "ExtensionNumberResponse": (
        "string base_type_name = 1",
        "repeated int32 extension_number = 2",
    ),
    "ListServiceResponse": ("repeated ServiceResponse service = 1",),
    "ServiceResponse": ("string name = 1",),
    "ErrorResponse": ("int32 error_code = 1", "string error_message = 2"),
}


class Rpc(NamedTuple):
    """One method of a service.

    Attributes:
        name: Its name.
        request: Name of the message it takes.
        response: Name of the message it gives.
        is_client_streaming: Whether it takes several.
        is_server_streaming: Whether it gives several.
    """

    name: str
    request: str
    response: str
    is_client_streaming: bool = False
    is_server_streaming: bool = False


def _unary(name: str) -> Rpc:
    return Rpc(name, f"{name}Request", f"{name}Response")


_INFERENCE_RPCS = (
    *(
        _unary(name)
        for name in (
            "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata",
            "ModelInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex",
            "RepositoryModelLoad", "RepositoryModelUnload",
        )
    ),
    Rpc("ModelStreamInfer", "ModelInferRequest", "ModelStreamInferResponse", True, True),
)  # fmt: skip
_REFLECT = Rpc(
    "ServerReflectionInfo", "ServerReflectionRequest", "ServerReflectionResponse", True, True
)
_HEALTH_RPCS = (
    Rpc("Check", "HealthCheckRequest", "HealthCheckResponse"),
    Rpc("Watch", "HealthCheckRequest", "HealthCheckResponse", is_server_streaming=True),
)

_FILES: tuple[tuple[str, str, str, dict[str, tuple[str, ...]], tuple[Rpc, ...]], ...] = (
    ("open_inference.proto", "inference", "GRPCInferenceService", _INFERENCE_MESSAGES,
     _INFERENCE_RPCS),
    ("grpc/health/v1/health.proto", "grpc.health.v1", "Health", _HEALTH_MESSAGES, _HEALTH_RPCS),
    ("grpc/reflection/v1/reflection.proto", "grpc.reflection.v1", "ServerReflection",
     _REFLECTION_MESSAGES, (_REFLECT,)),
    ("grpc/reflection/v1alpha/reflection.proto", "grpc.reflection.v1alpha", "ServerReflection",
     _REFLECTION_MESSAGES, (_REFLECT,)),
)  # fmt: skip

_FIELD = re.compile(r"(?:(repeated|oneof) )?(map<)?([\w.]+)>? (\w+) = (\d+)")
_SCALARS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9,
    "bytes": 12, "uint32": 13,
}  # fmt: skip
_MESSAGE, _ENUM = 11, 14
_OPTIONAL, _REPEATED = 1, 3
_ONEOFS = {
    "ServerReflectionRequest": "message_request",
    "ServerReflectionResponse": "message_response",
    **EXTENSION_ONEOFS,
}


class Schema(NamedTuple):
    """What the server speaks.

    Attributes:
        pool: Knows every message.
        messages: Full name → class, for example `inference.ModelInferRequest`.
        services: Full name → its methods.
    """

    pool: DescriptorPool
    messages: dict[str, Any]
    services: dict[str, tuple[Rpc, ...]]


@cache
def schema() -> Schema:
    """Return the messages and services.

    Raises:
        MissingExtraError: `protobuf` is not installed.
    """
    with requires("serve", needed_by="serving over gRPC"):
        from google.protobuf.descriptor_pool import DescriptorPool
        from google.protobuf.message_factory import GetMessageClass

    pool = DescriptorPool()
    messages: dict[str, Any] = {}
    services: dict[str, tuple[Rpc, ...]] = {}
    for path, package, service, kinds, rpcs in _FILES:
        pool.AddSerializedFile(_file(path, package, service, kinds, rpcs))
        for name in kinds:
            full = f"{package}.{name}"
            messages[full] = GetMessageClass(pool.FindMessageTypeByName(full))
        services[f"{package}.{service}"] = rpcs
    return Schema(pool, messages, services)


def _file(
    path: str,
    package: str,
    service: str,
    kinds: dict[str, tuple[str, ...]],
    rpcs: tuple[Rpc, ...],
) -> bytes:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name=path, package=package, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in kinds.items():
        outer, _, inner = name.rpartition(".")
        made[name] = message = (
            made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        )
        for text in fields:
            _add_field(message, text, f".{package}", name)
    _add_enums(file, made)
    declared = file.service.add(name=service)
    for rpc in rpcs:
        declared.method.add(
            name=rpc.name,
            input_type=f".{package}.{rpc.request}",
            output_type=f".{package}.{rpc.response}",
            client_streaming=rpc.is_client_streaming,
            server_streaming=rpc.is_server_streaming,
        )
    return bytes(file.SerializeToString())


def _add_enums(file: Message, made: dict[str, Message]) -> None:
    for full, values in _ENUMS.items():
        outer, _, name = full.rpartition(".")
        if outer in made:
            enum = made[outer].enum_type.add(name=name)
        elif not outer and file.package == "inference":
            enum = file.enum_type.add(name=name)
        else:
            continue
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)


def _add_field(message: Message, text: str, package: str, owner: str) -> None:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise AssertionError(f"{text!r} is no field")
    rule, is_map, kind, name, number = found.groups()
    field = message.field.add(name=name, number=int(number), label=_OPTIONAL)
    if rule == "repeated" or is_map:
        field.label = _REPEATED
    if is_map:
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_OPTIONAL, type=_SCALARS["string"])
        entry.field.add(
            name="value", number=2, label=_OPTIONAL, type=_MESSAGE, type_name=f"{package}.{kind}"
        )
        field.type, field.type_name = _MESSAGE, f"{package}.{owner}.ParametersEntry"
        return
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _ENUM if kind in _ENUMS else _MESSAGE
        field.type_name = f"{package}.{kind}"
    if rule == "oneof":
        if not message.oneof_decl:
            message.oneof_decl.add(name=_ONEOFS.get(owner, "parameter_choice"))
        field.oneof_index = 0
