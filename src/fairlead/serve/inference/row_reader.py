"""Bodies of requests with one tensor of plain numbers, read without a look at what repeats.

Clients send the same JSON again and again, and only the numbers differ. What stands around the
numbers is remembered once a body was read with all care, and only after a trial has shown that
nothing but the numbers of the tensor depends on what stands between. A body that begins and ends
with the same bytes then differs in nothing else, because what follows a prefix of JSON means the
same after the same prefix.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from fairlead.backends.openinference import datatype_of
from fairlead.core.errors import FairleadError
from fairlead.core.ports import Array
from fairlead.core.signature import Signature
from fairlead.serve.inference.intake import Intake
from fairlead.serve.inference.openinference import decode

__all__ = ["ReadRows", "RowReader"]

_CODES = {
    "float32": "f", "float64": "d", "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B",
}  # fmt: skip
"""The letters that `struct` has for numbers; it checks the type and the range of each."""
_MAX_FRAME_BYTES = 1024
_TRIALS = (7, 8)
_UNLEARNED = 15
"""After a body that was new, so many others are only read before the next one is learned."""


class ReadRows(NamedTuple):
    """What a body asked for.

    Attributes:
        id: The client's id, or "".
        n_rows: Its rows.
        raw: The bytes of its rows, as the model takes them.
    """

    id: str
    n_rows: int
    raw: bytes


class RowReader:
    """Reads what is asked of one model with a single input of numbers."""

    def __init__(self, signature: Signature, intake: Intake) -> None:
        """Prepare.

        Args:
            signature: What the model takes.
            intake: Checks what is asked of it.
        """
        spec = signature.inputs[0] if len(signature.inputs) == 1 else None
        is_fixed = spec is not None and spec.has_free_batch and -1 not in spec.shape[1:]
        self._code = _CODES.get(spec.dtype) if spec is not None and is_fixed else None
        self._datatype = datatype_of(spec.dtype) if spec is not None else ""
        self._intake = intake
        self.is_of_use = self._code is not None
        """Whether the model has such an input."""
        self._name = spec.name if spec is not None else ""
        self._dtype = spec.numpy_dtype if spec is not None else np.dtype(np.float32)
        self._tail = spec.shape[1:] if spec is not None else ()
        self._width = prod(self._tail)
        self._before, self._behind = b"\0", b"\0"
        self._start = 0
        self._end: int | None = None
        self._n_rows = 0
        self._pack: Callable[..., bytes] = struct.Struct("").pack
        self._n_new = 0

    def read(self, body: bytes) -> ReadRows | None:
        """Return what a body asks for; None where something needs a closer look."""
        if body.startswith(self._before) and body.endswith(self._behind):
            try:
                numbers = orjson.loads(body[self._start : self._end])
                if type(numbers[0]) is not bool:
                    return ReadRows("", self._n_rows, self._pack(*numbers))
            except (orjson.JSONDecodeError, struct.error, OverflowError, IndexError):
                return None
        return self._read_new(body)

    def join(self, raws: list[bytes], n_rows: int) -> dict[str, Array]:
        """Return the rows of several requests, one below the other, as the model takes them."""
        raw = raws[0] if len(raws) == 1 else b"".join(raws)
        return {self._name: np.ndarray((n_rows, *self._tail), self._dtype, raw)}

    def _read_new(self, body: bytes) -> ReadRows | None:
        try:
            message = decode(body, None)
            if message.outputs or message.is_binary or message.parameters:
                return None
            feeds, n_rows = self._intake.check(message.feeds)
        except FairleadError:
            return None
        self._n_new += 1
        if not message.id and self._n_new & _UNLEARNED == 1:
            self._learn(body, n_rows)
        return ReadRows(message.id, n_rows, feeds[self._name].tobytes())

    def _learn(self, body: bytes, n_rows: int) -> None:
        """Remember what stands around the numbers, where nothing but them depends on it."""
        start = _first_number(body)
        end = body.find(b"]", start)
        before, behind = body[:start], body[end:]
        if not 0 < start < end or len(before) + len(behind) > _MAX_FRAME_BYTES:
            return
        try:
            if not self._is_alike(orjson.loads(body), before, behind):
                return
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return
        self._before, self._behind = before, behind
        self._start, self._end = start - 1, 1 - len(behind) or None
        self._n_rows = n_rows
        self._pack = struct.Struct(f"={n_rows * self._width}{self._code}").pack

    def _is_alike(self, document: dict[str, Any], before: bytes, behind: bytes) -> bool:
        """Try whether another number between two pieces changes the tensor and nothing else."""
        item = document["inputs"][0]
        if item["datatype"] != self._datatype:
            return False
        depth = 0
        data = item["data"]
        while type(data) is list:
            data, depth = data[0], depth + 1
        for number in _TRIALS:
            item["data"] = number
            for _ in range(depth):
                item["data"] = [item["data"]]
            if orjson.loads(b"%b%d%b" % (before, number, behind)) != document:
                return False
        return True


def _first_number(body: bytes) -> int:
    """Return where the numbers of the last tensor begin, as far as a glance can tell; or 0."""
    at = body.rfind(b'"data"')
    start = body.find(b"[", at) + 1
    if at < 0 or not start:
        return 0
    while (more := body.find(b"[", start)) >= 0 and not body[start:more].strip():
        start = more + 1
    return start
