"""Tensors as JSON numbers and texts, nested or flat, checked so that no value changes unseen.

Numbers go through `struct`: it checks each of them, and costs a third of what numpy takes.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.openinference import numpy_dtype
from fairlead.core.bfloat16 import bits_of
from fairlead.core.errors import SignatureError
from fairlead.core.ports import Array

__all__ = ["json_from_tensor", "plain_tensor", "tensor_from_json"]

_CODES = {
    "FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "INT16": "h", "INT8": "b",
    "UINT64": "Q", "UINT32": "I", "UINT16": "H", "UINT8": "B",
}  # fmt: skip
_MAX_DIMENSIONS = 16
_MOST_AT_ONCE = 1 << 14
"""Between so many values other threads have their turn, the event loop among them."""
_DTYPES = {code: numpy_dtype(datatype) for datatype, code in _CODES.items()}


def json_from_tensor(array: Array) -> object:
    """Return what orjson writes as a flat list; NaN and infinite numbers become null."""
    flat = array.ravel()
    if flat.dtype.kind in "OUS":
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in flat.tolist()]
    return np.ascontiguousarray(flat, flat.dtype.newbyteorder("="))


def tensor_from_json(data: Any, *, name: str, datatype: str, shape: tuple[int, ...]) -> Array:  # noqa: ANN401 (JSON enters here)
    """Read a tensor from parsed JSON.

    Args:
        data: A list, flat or nested like the shape; a null in a float tensor is a missing value.
        name: Its name, for messages.
        datatype: Its datatype in the protocol.
        shape: Its shape.

    Raises:
        SignatureError: The values do not fit the datatype, or do not add up to the shape.
    """
    if not isinstance(data, list):
        data = [data]
    packed = _packed(data, datatype, shape)
    if packed is not None:
        return packed
    dtype = numpy_dtype(datatype)
    if datatype == "BF16":
        array: Array = bits_of(_numbers(data, name, datatype, np.dtype(np.float32)))
    elif dtype.kind == "O":
        array = _texts(data, name)
    else:
        array = _numbers(data, name, datatype, dtype)
    if array.size != math.prod(shape):
        raise SignatureError(
            f"input `{name}` has {array.size} values, but shape {list(shape)} needs "
            f"{math.prod(shape)}",
            hint="make shape and data agree",
        )
    return array.reshape(shape)


def _packed(data: list[Any], datatype: str, shape: tuple[int, ...]) -> Array | None:
    """Read plain numbers that fit as they are; None leaves the rest to the careful way."""
    code = _CODES.get(datatype)
    if code is None or not data:
        return None
    first = data[0]
    if type(first) is list and len(shape) == 2:
        if not _are_rows(data, shape):
            return None
        first = data[0][0]
    elif len(data) != math.prod(shape):
        return None
    if type(first) is bool:
        return None
    try:
        raw = _pack_rows(data, code) if type(data[0]) is list else _pack(data, code)
    except (struct.error, OverflowError):
        return None
    return np.ndarray(shape, _DTYPES[code], raw)


def _are_rows(data: list[Any], shape: tuple[int, ...]) -> bool:
    if len(data) != shape[0] or shape[1] < 1:
        return False
    return all(type(row) is list and len(row) == shape[1] for row in data)


def _pack_rows(rows: list[list[Any]], code: str) -> bytes:
    step = max(1, _MOST_AT_ONCE // len(rows[0]))
    parts = (rows[at : at + step] for at in range(0, len(rows), step))
    return b"".join([_pack(list(itertools.chain.from_iterable(part)), code) for part in parts])


def _pack(data: list[Any], code: str) -> bytes:
    if len(data) <= _MOST_AT_ONCE:
        return _packer(len(data), code)(*data)
    parts = (data[at : at + _MOST_AT_ONCE] for at in range(0, len(data), _MOST_AT_ONCE))
    return b"".join([_packer(len(part), code)(*part) for part in parts])


@lru_cache(maxsize=256)
def _packer(size: int, code: str) -> Callable[..., bytes]:
    # The standard layout: the native one would let too large floats become infinite.
    return struct.Struct(f"={size}{code}").pack


def plain_tensor(data: object, datatype: object, shape: object) -> Array | None:
    """Read the tensor that nearly everybody sends: flat plain numbers of the right count.

    Returns:
        The tensor, or None where something needs a closer look; nothing is refused here.
    """
    if type(data) is not list or type(shape) is not list or type(datatype) is not str:
        return None
    code = _CODES.get(datatype)
    if code is None or not data or type(data[0]) is bool or len(shape) > _MAX_DIMENSIONS:
        return None
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            return None
        count *= size
    if count != len(data):
        return None
    try:
        raw = _pack(data, code)
    except (struct.error, OverflowError):
        return None
    return np.ndarray(shape, _DTYPES[code], raw)


def _texts(data: list[Any], name: str) -> Array:
    leaves = data
    while leaves and all(isinstance(item, list) for item in leaves):
        leaves = [leaf for item in leaves for leaf in item]
    wrong = next((leaf for leaf in leaves if not isinstance(leaf, str)), None)
    if wrong is not None or None in leaves:
        raise SignatureError(
            f"input `{name}` is BYTES but holds {_shown(wrong)}", hint="send text in quotes"
        )
    array: NDArray[np.object_] = np.empty(len(leaves), dtype=object)
    array[:] = leaves
    return array


def _numbers(data: list[Any], name: str, datatype: str, dtype: np.dtype[Any]) -> Array:
    if len(data) > _MOST_AT_ONCE:
        return _many_numbers(data, name, datatype, dtype)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as exc:
        raise _ragged(name) from exc
    if array.size == 0:
        return np.zeros(0, dtype)
    if dtype.kind == "f":
        return _floats(array, name, datatype, dtype)
    if array.dtype.kind in "fO" and dtype.kind in "iu":
        # Mixed with small numbers, numpy reads those beyond 63 bits as floats.
        array = _exact(np.array(data, dtype=object), name, datatype)
    return _whole(array, name, datatype, dtype)


def _many_numbers(data: list[Any], name: str, datatype: str, dtype: np.dtype[Any]) -> Array:
    parts = [data[at : at + _MOST_AT_ONCE] for at in range(0, len(data), _MOST_AT_ONCE)]
    found = [_numbers(part, name, datatype, dtype).ravel() for part in parts]
    widths = {
        (type(part[0]) is list, values.size / len(part))
        for part, values in zip(parts, found, strict=True)
    }
    if len(widths) > 1:
        raise _ragged(name)
    return np.concatenate(found)


def _ragged(name: str) -> SignatureError:
    return SignatureError(
        f"input `{name}` is a ragged list: its parts have different lengths",
        hint="send a flat list, or lists nested like the shape",
    )


def _floats(array: NDArray[Any], name: str, datatype: str, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind == "O":
        leaves = array.ravel().tolist()
        wrong = next((v for v in leaves if v is not None and type(v) not in (int, float)), None)
        if wrong is not None:
            _refuse(name, datatype, wrong)
        array = np.array([math.nan if leaf is None else float(leaf) for leaf in leaves])
    if array.dtype.kind not in "iuf":
        _refuse(name, datatype, array.ravel()[0])
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    is_lost = np.isinf(cast) & np.isfinite(array)
    if is_lost.any():
        _refuse(name, datatype, array[is_lost][0])
    return cast


def _exact(array: NDArray[Any], name: str, datatype: str) -> NDArray[Any]:
    """Read every value as a whole number of any size."""
    leaves = array.ravel().tolist()
    for leaf in leaves:
        if type(leaf) is not int and not (type(leaf) is float and leaf.is_integer()):
            _refuse(name, datatype, leaf)
    exact: NDArray[Any] = np.empty(len(leaves), dtype=object)
    exact[:] = [int(leaf) for leaf in leaves]
    return exact


def _whole(array: NDArray[Any], name: str, datatype: str, dtype: np.dtype[Any]) -> Array:
    is_wanted = array.dtype.kind in ("biu" if dtype.kind == "b" else "iuO")
    if not is_wanted:
        _refuse(name, datatype, array.ravel()[0])
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for extreme in (int(array.min()), int(array.max())):
        if not low <= extreme <= high:
            _refuse(name, datatype, extreme)
    return array.astype(dtype)


def _refuse(name: str, datatype: str, value: object) -> None:
    raise SignatureError(
        f"input `{name}` is {datatype} but holds {_shown(value)}",
        hint=f"send values that {datatype} can hold, or change the datatype",
    )


def _shown(value: object) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    return "null" if plain is None else repr(plain)[:40]
