"""Tensors on the wire of the Open Inference Protocol (V2): datatype names and bytes.

Used by the client here and by the server in `serve.inference`; knows numpy and no transport.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.errors import SignatureError
from fairlead.core.signature import STRING

__all__ = [
    "DATATYPES",
    "bytes_from_tensor",
    "datatype_of",
    "dtype_name",
    "numpy_dtype",
    "tensor_from_bytes",
]

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": STRING,
}
"""Datatype of the protocol → dtype name of a signature."""

_NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def dtype_name(datatype: str) -> str:
    """Return the signature's dtype name of a datatype, for example `FP32` → `float32`.

    Raises:
        SignatureError: The protocol has no such datatype.
    """
    try:
        return DATATYPES[datatype]
    except (KeyError, TypeError):
        raise SignatureError(
            f"datatype {datatype!r} is not known", hint=f"use one of {', '.join(DATATYPES)}"
        ) from None


def datatype_of(dtype: str) -> str:
    """Return the datatype of a signature's dtype name, for example `float32` → `FP32`."""
    return _NAMES[dtype]


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """Return the dtype of arrays of a datatype; `object` (holding `str`) for BYTES.

    Raises:
        SignatureError: The protocol has no such datatype.
    """
    name = dtype_name(datatype)
    if name == STRING:
        return np.dtype(object)
    return np.dtype(np.uint16) if name == "bfloat16" else np.dtype(name)


def bytes_from_tensor(array: NDArray[Any]) -> tuple[str, bytes]:
    """Write a tensor as raw bytes, little-endian and row-major.

    Args:
        array: Numbers, booleans or text (`object` or `U` arrays).

    Returns:
        Its datatype, and its bytes; each text is preceded by its length as 4 bytes.
    """
    if array.dtype.kind in "OUS":
        return "BYTES", b"".join(_framed(value) for value in array.ravel())
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return datatype_of(array.dtype.name), little.tobytes()


def _framed(value: object) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode()
    return _LENGTH.pack(len(raw)) + raw


def tensor_from_bytes(
    raw: memoryview, *, name: str, datatype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Read a tensor from raw bytes, without a copy where the memory allows it.

    Args:
        raw: Exactly the bytes of this tensor.
        name: Its name, for messages.
        datatype: Its datatype in the protocol.
        shape: Its shape; every size 0 or more.

    Raises:
        SignatureError: The bytes do not add up to the shape, or text is not UTF-8.
    """
    dtype = numpy_dtype(datatype)
    count = math.prod(shape)
    if dtype.kind == "O":
        return _text_from_bytes(raw, name, count).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise SignatureError(
            f"tensor `{name}` has {len(raw)} bytes, but {datatype} of shape {list(shape)} "
            f"needs {count * dtype.itemsize}",
            hint="send exactly the bytes of the tensor, row-major and little-endian",
        )
    array = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
    if dtype.kind == "b" and count and int(array.view(np.uint8).max()) > 1:
        raise SignatureError(
            f"tensor `{name}` is BOOL but holds other bytes than 0 and 1",
            hint="send one byte per value: 0 for false, 1 for true",
        )
    # Runtimes assume aligned memory, and a tensor may start at any byte of a body.
    return array if array.flags.aligned and dtype.isnative else array.astype(dtype)


def _text_from_bytes(raw: memoryview, name: str, count: int) -> NDArray[Any]:
    values: list[str] = []
    at = 0
    try:
        while at < len(raw):
            (length,) = _LENGTH.unpack_from(raw, at)
            end = at + 4 + length
            if end > len(raw):
                raise struct.error
            values.append(str(raw[at + 4 : end], "utf-8"))
            at = end
    except struct.error:
        raise SignatureError(
            f"tensor `{name}` ends in the middle of a text, at byte {len(raw)}",
            hint="precede each text by its length as 4 bytes, little-endian",
        ) from None
    except UnicodeDecodeError as exc:
        raise SignatureError(
            f"tensor `{name}` holds bytes that are not UTF-8: {exc.reason}",
            hint="send text as UTF-8",
        ) from exc
    if len(values) != count:
        raise SignatureError(
            f"tensor `{name}` holds {len(values)} texts, but its shape needs {count}",
            hint="make shape and data agree",
        )
    array = np.empty(count, dtype=object)
    array[:] = values
    return array
