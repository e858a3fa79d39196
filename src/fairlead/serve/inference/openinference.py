"""Requests and answers of the Open Inference Protocol (V2): JSON, and JSON with binary tensors.

A body with the binary extension is a JSON header, whose length stands in the HTTP header
`Inference-Header-Content-Length`, followed by the raw bytes of the tensors in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from fairlead.backends.openinference import datatype_of, dtype_name, tensor_from_bytes
from fairlead.core.errors import DataError, SignatureError
from fairlead.core.ports import Array
from fairlead.core.signature import Signature, TensorSpec
from fairlead.serve.inference.json_tensors import plain_tensor, tensor_from_json
from fairlead.serve.inference.long_json import LONG_BYTES, let_go, parsed

__all__ = [
    "HEADER_LENGTH",
    "InferMessage",
    "check_requested",
    "decode",
    "model_metadata",
    "parse_json",
    "platform_of",
]

HEADER_LENGTH = "inference-header-content-length"

_BINARY = {"binary_data", "binary_data_output", "binary_data_size"}
_HINT = "see the Open Inference Protocol: every input has name, datatype, shape and data"
_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**40
_MAX_ID = 256
_NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})
_PLATFORMS = {
    "onnx": "onnxruntime_onnx",
    "pyfunc": "mlflow_pyfunc",
    "python": "python",
    "ensemble": "ensemble",
}


class InferMessage(NamedTuple):
    """A decoded inference request.

    Attributes:
        id: The client's id, or "".
        feeds: Name → array.
        outputs: Requested output → whether it is wanted as binary; empty asks for all.
        is_binary: Whether outputs that are not requested by name are wanted as binary.
        parameters: Parameters of the request.
    """

    id: str
    feeds: dict[str, Array]
    outputs: dict[str, bool]
    is_binary: bool
    parameters: Mapping[str, Any] = _NO_PARAMETERS


def parse_json(raw: bytes | memoryview) -> dict[str, Any]:
    """Read a JSON object; NaN and Infinity count as numbers.

    Raises:
        DataError: It is not JSON, or not an object.
    """
    try:
        document = parsed(raw)
    except orjson.JSONDecodeError as exc:
        raise DataError(f"the body is not JSON: {exc}", hint="send a JSON object") from exc
    if not isinstance(document, dict):
        raise DataError(
            f"the body is a JSON {type(document).__name__}, expected an object", hint=_HINT
        )
    return document


def decode(body: bytes, header_length: str | None) -> InferMessage:
    """Read an inference request.

    Args:
        body: The whole body.
        header_length: Value of `Inference-Header-Content-Length`, or None when it was not sent.

    Raises:
        DataError: The body is not what the protocol says.
        SignatureError: A tensor's data does not fit its datatype or shape.
    """
    view = memoryview(body)
    at = _header_length(header_length, len(view))
    document = parse_json(body if at == len(view) else view[:at])
    try:
        return _message(document, view, at)
    finally:
        if at > LONG_BYTES:
            let_go(document)


def _message(document: dict[str, Any], view: memoryview, at: int) -> InferMessage:
    plain = _plain_message(document)
    if plain is not None and at == len(view):
        return plain
    parameters = _parameters(document, "request", known=_BINARY)
    feeds: dict[str, Array] = {}
    for item in _objects(document, "inputs"):
        name = _text(item, "name")
        if name in feeds:
            raise SignatureError(f"input `{name}` is sent twice", hint="send each input once")
        feeds[name], at = _tensor(item, name, view, at)
    if at != len(view):
        raise DataError(
            f"{len(view) - at} bytes follow the last tensor",
            hint="make the `binary_data_size` of every tensor add up to the body",
        )
    is_binary = parameters.get("binary_data_output", False) is True
    requested = _requested(document, is_binary)
    return InferMessage(_id(document), feeds, requested, is_binary, parameters)


def _plain_message(document: dict[str, Any]) -> InferMessage | None:
    """Read a message of plain JSON tensors and an id at most; None leaves it to the full way."""
    request_id = document.get("id", "")
    if len(document) != (2 if "id" in document else 1) or type(request_id) is not str:
        return None
    items = document.get("inputs")
    if type(items) is not list or not items or len(request_id) > _MAX_ID:
        return None
    feeds: dict[str, Array] = {}
    for item in items:
        if type(item) is not dict or len(item) != 4 or "data" not in item:
            return None
        name = item.get("name")
        array = plain_tensor(item["data"], item.get("datatype"), item.get("shape"))
        if array is None or type(name) is not str or not name or name in feeds:
            return None
        feeds[name] = array
    return InferMessage(request_id, feeds, {}, False, _NO_PARAMETERS)


def check_requested(message: InferMessage, signature: Signature) -> None:
    """Refuse a request for an output that the model does not have, before it runs.

    Raises:
        SignatureError: There is no such output.
    """
    for name in message.outputs:
        signature.output(name)


def platform_of(kind: str) -> str:
    """Return what the protocol calls a platform, for the kind of a bundle."""
    return _PLATFORMS.get(kind, f"fairlead_{kind}")


def model_metadata(
    model: str, versions: tuple[str, ...], kind: str, signature: Signature
) -> dict[str, Any]:
    """Return the metadata of a model as the protocol wants it."""
    return {
        "name": model,
        "versions": list(versions),
        "platform": platform_of(kind),
        "inputs": [_metadata(spec) for spec in signature.inputs],
        "outputs": [_metadata(spec) for spec in signature.outputs],
    }


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": list(spec.shape)}


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdigit()) or int(text) > size:
        raise DataError(
            f"Inference-Header-Content-Length is {text[:20]!r}, but the body has {size} bytes",
            hint="give the number of bytes of the JSON header, and send the whole body",
        )
    return int(text)


def _tensor(item: dict[str, Any], name: str, view: memoryview, at: int) -> tuple[Array, int]:
    datatype = _text(item, "datatype")
    dtype_name(datatype)
    shape = _shape(item, name)
    parameters = _parameters(item, f"input `{name}`", known=_BINARY)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise SignatureError(f"input `{name}` has no data", hint=_HINT)
        return tensor_from_json(item["data"], name=name, datatype=datatype, shape=shape), at
    if "data" in item or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise SignatureError(
            f"input `{name}` has binary_data_size {size!r}"
            + (" and data as well" if "data" in item else ""),
            hint="give either data, or the number of its bytes behind the JSON header",
        )
    if at + size > len(view):
        raise SignatureError(
            f"input `{name}` has {size} bytes by its header, but {len(view) - at} are left",
            hint="send the whole body",
        )
    raw = view[at : at + size]
    return tensor_from_bytes(raw, name=name, datatype=datatype, shape=shape), at + size


def _shape(item: dict[str, Any], name: str) -> tuple[int, ...]:
    shape = item.get("shape")
    is_valid = type(shape) is list and len(shape) <= _MAX_DIMENSIONS
    for size in shape if type(shape) is list else ():
        is_valid = is_valid and type(size) is int and 0 <= size < _MAX_SIZE
    if not is_valid or math.prod(shape or ()) >= _MAX_SIZE:
        raise SignatureError(
            f"input `{name}` has shape {str(shape)[:80]}, expected a list of sizes",
            hint="give one whole number of 0 or more per dimension, for example [1, 64]",
        )
    return tuple(shape or ())


def _parameters(item: dict[str, Any], where: str, *, known: set[str]) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise DataError(f"the parameters of the {where} are no object", hint=_HINT)
    for name in ("classification", "shared_memory_region", "sequence_id"):
        if parameters.get(name) and name not in known:
            raise DataError(
                f"the {where} asks for `{name}`, which this server does not offer",
                hint="leave the parameter out",
            )
    return parameters


def _requested(document: dict[str, Any], is_binary: bool) -> dict[str, bool]:
    requested: dict[str, bool] = {}
    if document.get("outputs") is None:
        return requested
    for item in _objects(document, "outputs", allow_empty=True):
        name = _text(item, "name")
        parameters = _parameters(item, f"output `{name}`", known=_BINARY)
        requested[name] = parameters.get("binary_data", is_binary) is True
    return requested


def _objects(
    document: dict[str, Any], key: str, *, allow_empty: bool = False
) -> list[dict[str, Any]]:
    items = document.get(key)
    if type(items) is not list or not all(isinstance(item, dict) for item in items):
        raise DataError(f"`{key}` is {_shown(items)}, expected a list of objects", hint=_HINT)
    if not items and not allow_empty:
        raise DataError(f"`{key}` is empty", hint=_HINT)
    return items


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"`{key}` is {_shown(value)}, expected text", hint=_HINT)
    return value


def _id(document: dict[str, Any]) -> str:
    value = document.get("id")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_ID:
        raise DataError(
            f"`id` is {_shown(value)}, expected text of at most 256 characters", hint=_HINT
        )
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
