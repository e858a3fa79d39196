"""Inference requests and answers as protobuf messages, to and from arrays.

Raw contents become arrays without a copy; answers go back in the form that the request came in,
raw or typed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fairlead.backends.openinference import (
    DATATYPES,
    bytes_from_tensor,
    datatype_of,
    dtype_name,
    numpy_dtype,
    tensor_from_bytes,
)
from fairlead.core.errors import DataError, SignatureError
from fairlead.core.ports import Array
from fairlead.core.signature import STRING, Signature
from fairlead.serve.inference.grpc.schema import Message, schema
from fairlead.serve.inference.inference_request import Answer
from fairlead.serve.inference.served import ServedTogether

__all__ = [
    "AnswerMessages",
    "InferCall",
    "bytes_field",
    "parameters_of",
    "plain_dtype",
    "read_request",
]

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_HALVES = {"FP16", "BF16"}
_MAX_DIMENSIONS = 16
_MAX_ID = 256
_MAX_FRAMES = 256
_REFUSED = ("classification", "shared_memory_region", "sequence_id")
_IS_LITTLE = sys.byteorder == "little"
# Numbers of which every bit pattern is one, so that their bytes are the array.
_PLAIN = {
    datatype: numpy_dtype(datatype)
    for datatype in DATATYPES
    if _IS_LITTLE and datatype not in {"BOOL", "BYTES"}
}
_HINT = "see the Open Inference Protocol: every input has name, datatype, shape and contents"


class InferCall(NamedTuple):
    """A request as arrays.

    Attributes:
        id: The client's id, or "".
        feeds: Name → array.
        outputs: Requested outputs, or None for all.
        parameters: Parameters of the request.
        is_raw: Whether the tensors came as raw bytes.
    """

    id: str
    feeds: dict[str, Array]
    outputs: tuple[str, ...] | None
    parameters: Mapping[str, Any]
    is_raw: bool


def plain_dtype(datatype: str) -> np.dtype[Any] | None:
    """Return the dtype of raw contents of which every bit pattern is a number; else None."""
    return _PLAIN.get(datatype)


def read_request(request: Message) -> InferCall:
    """Read a `ModelInferRequest`.

    Raises:
        DataError: It is not what the protocol says, or asks for what this server does not offer.
        SignatureError: A tensor's contents do not fit its datatype or shape.
    """
    raws = request.raw_input_contents
    inputs = request.inputs
    is_raw = len(raws) > 0
    _check_outline(request, len(inputs), len(raws))
    feeds: dict[str, Array] = {}
    for place, tensor in enumerate(inputs):
        name = tensor.name
        if name in feeds or not name:
            raise SignatureError(f"input {name!r} is sent twice, or has no name", hint=_HINT)
        if tensor.parameters:
            _refuse_unoffered(tensor.parameters, f"input `{name}`")
        shape = _shape(name, tensor.shape)
        if is_raw:
            feeds[name] = _raw(raws[place], name, tensor.datatype, shape)
        else:
            feeds[name] = _typed(tensor, name, shape)
    outputs = _wanted(request.outputs) if request.outputs else None
    parameters: Mapping[str, Any] = {}
    if request.parameters:
        _refuse_unoffered(request.parameters, "request")
        parameters = parameters_of(request.parameters)
    return InferCall(request.id, feeds, outputs, parameters, is_raw)


def _check_outline(request: Message, n_inputs: int, n_raws: int) -> None:
    if n_raws not in (0, n_inputs):
        raise DataError(
            f"there are {n_inputs} inputs, but {n_raws} raw contents",
            hint="send all inputs as raw contents, in their order, or none",
        )
    if len(request.id) > _MAX_ID:
        raise DataError(f"the id has more than {_MAX_ID} characters", hint="send a shorter one")


def _wanted(outputs: Iterable[Message]) -> tuple[str, ...]:
    for output in outputs:
        _refuse_unoffered(output.parameters, f"output `{output.name}`")
    return tuple(dict.fromkeys(output.name for output in outputs))


def parameters_of(messages: Mapping[str, Any]) -> dict[str, Any]:
    """Return name → value of parameters."""
    found: dict[str, Any] = {}
    for name, message in messages.items():
        which = next(iter(message.ListFields()), None)
        found[name] = None if which is None else which[1]
    return found


def _refuse_unoffered(parameters: Mapping[str, Any], where: str) -> None:
    for name in _REFUSED:
        if name in parameters and any(value for _, value in parameters[name].ListFields()):
            raise DataError(
                f"the {where} asks for `{name}`, which this server does not offer",
                hint="leave the parameter out",
            )


def _shape(name: str, sizes: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(sizes)
    is_valid = len(shape) <= _MAX_DIMENSIONS and all(0 <= size < 2**40 for size in shape)
    if not is_valid or math.prod(shape) >= 2**40:
        raise SignatureError(
            f"input `{name}` has shape {str(list(shape))[:80]}",
            hint="give one whole number of 0 or more per dimension, for example [1, 64]",
        )
    return shape


def _raw(raw: bytes, name: str, datatype: str, shape: tuple[int, ...]) -> Array:
    dtype = _PLAIN.get(datatype)
    if dtype is not None and len(raw) == math.prod(shape) * dtype.itemsize:
        return np.frombuffer(raw, dtype).reshape(shape)
    return tensor_from_bytes(memoryview(raw), name=name, datatype=datatype, shape=shape)


def _typed(tensor: Message, name: str, shape: tuple[int, ...]) -> Array:
    datatype = tensor.datatype
    dtype_name(datatype)
    if datatype in _HALVES:
        raise SignatureError(
            f"input `{name}` is {datatype}, which has no typed contents",
            hint="send it as raw_input_contents",
        )
    field = _CONTENTS[datatype]
    others = [known.name for known, _ in tensor.contents.ListFields() if known.name != field]
    if others:
        raise SignatureError(
            f"input `{name}` is {datatype}, but its values are in {others[0]}",
            hint=f"put them into {field}",
        )
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise SignatureError(
            f"input `{name}` has {len(values)} values, but shape {list(shape)} needs "
            f"{math.prod(shape)}",
            hint="make shape and contents agree",
        )
    return _array(values, name, datatype).reshape(shape)


def _array(values: Message, name: str, datatype: str) -> Array:
    if datatype == "BYTES":
        texts = np.empty(len(values), dtype=object)
        try:
            texts[:] = [str(value, "utf-8") for value in values]
        except UnicodeDecodeError as exc:
            raise SignatureError(
                f"tensor `{name}` holds bytes that are not UTF-8: {exc.reason}",
                hint="send text as UTF-8",
            ) from exc
        return texts
    dtype = numpy_dtype(datatype)
    if dtype.itemsize >= 4 or dtype.kind == "b":
        return np.fromiter(values, dtype, len(values))
    # The protocol has no 8-bit and 16-bit fields.
    wide = np.fromiter(values, np.int64, len(values))
    limits = np.iinfo(dtype)
    if wide.size and not limits.min <= wide.min() <= wide.max() <= limits.max:
        raise SignatureError(
            f"input `{name}` is {datatype} but holds values beyond it",
            hint=f"send values from {limits.min} to {limits.max}",
        )
    return wide.astype(dtype)


class AnswerMessages:
    """Writes the answers of one arm; what is the same in all of them is written once."""

    def __init__(self, model: str, version: str, arm: str, signature: Signature) -> None:
        """Write down what does not change.

        Args:
            model: Name of the model.
            version: Version that answers.
            arm: Name of the arm.
            signature: What the model gives.
        """
        self._model, self._version, self._arm = model, version, arm
        self._dtypes = {spec.name: spec.dtype for spec in signature.outputs}
        self._names = tuple(self._dtypes)
        self._class = schema().messages["inference.ModelInferResponse"]
        self._begin = self._class(model_name=model, model_version=version).SerializeToString()
        fixed = self._class()
        fixed.parameters["fairlead-arm"].string_param = arm
        self._end = fixed.SerializeToString()
        self._frames: dict[tuple[str, np.dtype[Any], tuple[int, ...]], bytes] = {}

    def write(
        self,
        request: InferCall,
        answer_id: str,
        outputs: Mapping[str, Array],
        told: Mapping[str, str | float] | None = None,
    ) -> bytes:
        """Write a `ModelInferResponse`.

        Args:
            request: The request; it says which outputs are wanted, and how.
            answer_id: Id of the request.
            outputs: Name → array.
            told: Further parameters of the answer.
        """
        names = request.outputs or self._names
        if not request.is_raw and not any(
            self._datatype(name, outputs[name]) in _HALVES for name in names
        ):
            whole = bytes(self.message(request, answer_id, outputs).SerializeToString())
            return whole + self._told(told)
        pieces = [self._begin, bytes_field(0x1A, answer_id.encode()), self._end, self._told(told)]
        raws = []
        for name in names:
            array = outputs[name]
            is_plain = array.dtype.kind not in "OUS" and array.dtype.isnative and _IS_LITTLE
            raw = array.tobytes() if is_plain else bytes_from_tensor(array)[1]
            raws.append(bytes_field(0x32, raw))
            pieces.append(self._frame(name, array))
        return b"".join((*pieces, *raws))

    def write_all(self, served: ServedTogether, outputs: tuple[str, ...] | None) -> list[bytes]:
        """Write the answers to requests that ran together and want the same outputs, raw."""
        names = outputs or self._names
        array = served.outputs[names[0]]
        is_plain = array.dtype.kind not in "OUS" and array.dtype.isnative and _IS_LITTLE
        if len(names) > 1 or not is_plain or array.ndim == 0 or len(array) != served.batch_rows:
            return self._write_each(served, outputs)
        told = self._told(Answer.told_of(served.parts_ms))
        raw = array.tobytes()
        row_bytes = len(raw) // len(array)
        behind: dict[int, bytes] = {}
        found = []
        start = 0
        for request_id, n_rows in zip(served.ids, served.n_rows, strict=True):
            end = start + n_rows * row_bytes
            frame = behind.get(n_rows)
            if frame is None:
                rest = self._frame(names[0], array[:n_rows])
                head = _field_head(0x32, end - start)
                frame = behind[n_rows] = self._end + told + rest + head
            who = request_id.encode()
            found.append(b"%b%b%b%b" % (self._begin, bytes_field(0x1A, who), frame, raw[start:end]))
            start = end
        return found

    def _write_each(self, served: ServedTogether, outputs: tuple[str, ...] | None) -> list[bytes]:
        asked = InferCall("", {}, outputs, {}, is_raw=True)
        found = []
        for each in served:
            told = Answer.told_of(each.parts_ms)
            found.append(self.write(asked, each.id, each.outputs or {}, told))
        return found

    def message(self, request: InferCall, answer_id: str, outputs: Mapping[str, Array]) -> Message:
        """Return a `ModelInferResponse` with typed contents."""
        response = self._class.FromString(self._begin + self._end)
        response.id = answer_id
        for name in request.outputs or self._names:
            array = outputs[name]
            datatype = self._datatype(name, array)
            tensor = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            values: list[Any] = array.ravel().tolist()
            if datatype == "BYTES":
                values = [v if isinstance(v, bytes) else str(v).encode() for v in values]
            getattr(tensor.contents, _CONTENTS[datatype]).extend(values)
        return response

    def _told(self, told: Mapping[str, str | float] | None) -> bytes:
        """Return parameters as the bytes of a message; messages join by being put together."""
        if not told:
            return b""
        message = self._class()
        for name, value in told.items():
            if isinstance(value, str):
                message.parameters[name].string_param = value
            else:
                message.parameters[name].double_param = value
        return bytes(message.SerializeToString())

    def _datatype(self, name: str, array: Array) -> str:
        if array.dtype.kind in "OUS":
            return datatype_of(STRING)
        is_bf16 = self._dtypes.get(name) == "bfloat16" and array.dtype == np.uint16
        return "BF16" if is_bf16 else datatype_of(array.dtype.name)

    def _frame(self, name: str, array: Array) -> bytes:
        """Return the description of an output, without its contents."""
        known = self._frames.get((name, array.dtype, array.shape))
        if known is None:
            datatype = self._datatype(name, array)
            message = self._class()
            message.outputs.add(name=name, datatype=datatype, shape=array.shape)
            known = message.SerializeToString()
            if len(self._frames) < _MAX_FRAMES:
                self._frames[name, array.dtype, array.shape] = known
        return known


def bytes_field(tag: int, data: bytes) -> bytes:
    """Return a field of bytes as protobuf writes it."""
    return _field_head(tag, len(data)) + data


def _field_head(tag: int, size: int) -> bytes:
    if size < 0x80:
        return bytes((tag, size))
    head = bytearray((tag,))
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)
