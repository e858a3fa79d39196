"""Frames: columns as bytes that a reader can trust, whatever killed the writer.

    magic "FLp1" · CRC-32 of the payload · length of the payload · payload
    payload = length of the header · header (JSON) · the bytes of each block, one after the other

A block is an array of numbers (its bytes), texts (JSON), or one constant for all rows (in the
header). A frame that was torn or changed does not pass its checksum; the frames before
and after it still do.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from fairlead.core.dataset import Array

_dumps: Callable[[object], bytes] | None
try:
    from orjson import dumps as _dumps
except ImportError:  # It comes with the server; others write a few texts only.
    _dumps = None

__all__ = ["MAGIC", "Block", "Frame", "decode_frames", "encode_frame"]

MAGIC = b"FLp1"
_PREFIX = struct.Struct("<4sIQ")
_SIZE = struct.Struct("<I")
_ARRAY, _TEXTS, _CONSTANT = "a", "t", "c"

Block = Array | Sequence[str | None] | str | int | float
"""An array of numbers or text, a list of texts, or one value for all rows."""


class Frame(NamedTuple):
    """What one frame holds.

    Attributes:
        kind: What the writer calls frames of this sort.
        blocks: Name → array, or the value that holds for all rows.
    """

    kind: str
    blocks: dict[str, Any]


def encode_frame(kind: str, blocks: Mapping[str, Block]) -> bytes:
    """Return the bytes of one frame.

    Args:
        kind: What the reader needs to know to use it.
        blocks: Name → block; arrays may have any shape, texts come back as `object` arrays.
    """
    parts: list[bytes | memoryview] = []
    entries: list[list[Any]] = []
    raw: bytes | memoryview
    for name, block in blocks.items():
        if isinstance(block, np.ndarray) and block.dtype.kind not in "OUS":
            little = block.dtype.newbyteorder("<")
            raw = np.ascontiguousarray(block, little).reshape(-1).view(np.uint8).data
            entries.append([name, _ARRAY, len(raw), list(block.shape), little.str])
        elif isinstance(block, np.ndarray):
            raw = json.dumps([_text(value) for value in block.ravel().tolist()]).encode()
            entries.append([name, _TEXTS, len(raw), list(block.shape)])
        elif isinstance(block, str | int | float):
            raw = b""
            entries.append([name, _CONSTANT, 0, block])
        else:
            raw = _json_of(block)
            entries.append([name, _TEXTS, len(raw), [len(block)]])
        parts.append(raw)
    header = json.dumps([kind, entries]).encode()
    payload = (_SIZE.pack(len(header)) + header, *parts)
    checksum = length = 0
    for part in payload:
        checksum = zlib.crc32(part, checksum)
        length += len(part)
    return b"".join((_PREFIX.pack(MAGIC, checksum, length), *payload))


def _json_of(texts: Sequence[str | None]) -> bytes:
    """Return texts as JSON, by the fastest way that there is."""
    if _dumps is not None:
        with suppress(TypeError):  # half a character, which json writes and reads
            return bytes(_dumps(texts))
    return json.dumps(texts).encode()


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def decode_frames(data: bytes | memoryview) -> Iterator[Frame | None]:
    """Yield the whole frames in some bytes, and None for each stretch that is not one.

    Arrays are views of the bytes.
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        end = _end_of_frame(view, at)
        if end is None:
            yield None
            at = _next_magic(view, at + 1)
            continue
        yield _decode(view[at + _PREFIX.size : end])
        at = end


def _end_of_frame(view: memoryview, at: int) -> int | None:
    """Return where the frame that begins here ends, or None when it is none."""
    if at + _PREFIX.size > len(view):
        return None
    magic, checksum, length = _PREFIX.unpack_from(view, at)
    end = int(at + _PREFIX.size + length)
    if magic != MAGIC or end > len(view):
        return None
    return end if zlib.crc32(view[at + _PREFIX.size : end]) == checksum else None


def _next_magic(view: memoryview, start: int) -> int:
    step = 1 << 16
    while start < len(view):
        # The pieces overlap, or a magic on the border of two would be missed.
        found = bytes(view[start : start + step + len(MAGIC) - 1]).find(MAGIC)
        if found >= 0:
            return start + found
        start += step
    return len(view)


def _decode(payload: memoryview) -> Frame:
    (size,) = _SIZE.unpack_from(payload)
    at = _SIZE.size + size
    kind, entries = json.loads(bytes(payload[_SIZE.size : at]))
    blocks: dict[str, Any] = {}
    for name, what, length, *details in entries:
        raw = payload[at : at + length]
        at += length
        if what == _ARRAY:
            blocks[name] = np.frombuffer(raw, np.dtype(details[1])).reshape(details[0])
        elif what == _TEXTS:
            texts: Array = np.empty(math.prod(details[0]), dtype=object)
            texts[:] = json.loads(bytes(raw))
            blocks[name] = texts.reshape(details[0])
        else:
            blocks[name] = details[0]
    return Frame(kind, blocks)
