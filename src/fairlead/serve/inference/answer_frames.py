"""Answers of the Open Inference Protocol; what is the same in all of them is written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from fairlead.backends.openinference import bytes_from_tensor, datatype_of
from fairlead.core.bfloat16 import BFLOAT16, numbers_of
from fairlead.core.ports import Array
from fairlead.core.signature import Signature
from fairlead.serve.inference.json_tensors import json_from_tensor
from fairlead.serve.inference.openinference import InferMessage

__all__ = ["AnswerFrames"]

_MAX_FRAMES = 256
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class AnswerFrames:
    """Writes the answers of one version of a model."""

    def __init__(self, model: str, version: str, signature: Signature) -> None:
        """Write down what does not change.

        Args:
            model: Name of the model.
            version: Version that answers.
            signature: What the model gives.
        """
        self._dtypes = {spec.name: spec.dtype for spec in signature.outputs}
        self._names = tuple(self._dtypes)
        self._middle = b',"model_name":%b,"model_version":%b,"outputs":[' % (
            orjson.dumps(model),
            orjson.dumps(version),
        )
        self._frames: dict[tuple[str, tuple[int, ...]], bytes] = {}

    def write(
        self,
        message: InferMessage,
        request_id: str,
        outputs: dict[str, Array],
        parts_ms: Mapping[str, float] | None = None,
    ) -> tuple[bytes, int | None]:
        """Write an answer.

        Args:
            message: The request; it says which outputs are wanted, and how.
            request_id: Id of the request.
            outputs: Name → array.
            parts_ms: Step → time it ran, in ms; becomes the parameters `step_ms.<step>`.

        Returns:
            The body, and the length of its JSON header when binary tensors follow it.
        """
        if message.outputs or message.is_binary:
            return self._write_chosen(message, request_id, outputs, _end(parts_ms))
        pieces = [b'{"id":', orjson.dumps(request_id), self._middle]
        for name in self._names:
            array = outputs[name]
            pieces.append(self._frame(name, array))
            pieces.append(self._data(name, array))
            pieces.append(b"},")
        pieces[-1] = b"}" + _end(parts_ms)
        return b"".join(pieces), None

    def _write_chosen(
        self, message: InferMessage, request_id: str, outputs: dict[str, Array], end: bytes
    ) -> tuple[bytes, int | None]:
        chosen = message.outputs or dict.fromkeys(self._names, message.is_binary)
        documents: list[bytes] = []
        raws: list[bytes] = []
        for name, is_binary in chosen.items():
            array = outputs[name]
            if not is_binary:
                documents.append(self._frame(name, array) + self._data(name, array) + b"}")
                continue
            raw = bytes_from_tensor(array)[1]
            raws.append(raw)
            head = self._frame(name, array).removesuffix(b'"data":')
            documents.append(b'%b"parameters":{"binary_data_size":%d}}' % (head, len(raw)))
        head = b"".join(
            (b'{"id":', orjson.dumps(request_id), self._middle, b",".join(documents), end)
        )
        if not raws:
            return head, None
        return b"".join((head, *raws)), len(head)

    def _frame(self, name: str, array: NDArray[Any]) -> bytes:
        """Return an output as JSON up to its data."""
        key = (name, array.shape)
        frame = self._frames.get(key)
        if frame is None:
            document = {"name": name, "datatype": self._datatype(name, array), "shape": array.shape}
            frame = orjson.dumps(document)[:-1] + b',"data":'
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            self._frames[key] = frame
        return frame

    def _data(self, name: str, array: NDArray[Any]) -> bytes:
        if self._dtypes.get(name) == BFLOAT16 and array.dtype == np.uint16:
            array = numbers_of(array)
        try:
            if array.ndim == 2 and len(array) == 1:
                return orjson.dumps(array, option=_NUMPY)[1:-1]
            return orjson.dumps(array if array.ndim == 1 else array.reshape(-1), option=_NUMPY)
        except orjson.JSONEncodeError:  # text, or memory that is laid out otherwise
            return orjson.dumps(json_from_tensor(array), option=_NUMPY)

    def _datatype(self, name: str, array: NDArray[Any]) -> str:
        if array.dtype.kind in "OUS":
            return "BYTES"
        dtype = self._dtypes.get(name)
        is_bf16 = dtype == BFLOAT16 and array.dtype == np.uint16
        return "BF16" if is_bf16 else datatype_of(array.dtype.name)


def _end(parts_ms: Mapping[str, float] | None) -> bytes:
    """Return what closes the outputs and the answer."""
    if not parts_ms:
        return b"]}"
    told = {f"step_ms.{step}": round(run_ms, 4) for step, run_ms in parts_ms.items()}
    return b'],"parameters":%b}' % orjson.dumps(told)
