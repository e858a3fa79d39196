"""Long JSON, read piece by piece, so that a thread that reads it leaves other threads their turn.

A parser in C holds the interpreter's lock until it has read everything, and an event loop waits
for it in whichever thread it runs. Nearly all of a long body is one list, or some: they are read
some kilobytes at a time, and what stands around them together with their last elements.

A piece ends in front of a comma and is read as a list of its own. That it can be read shows that
the comma stands between two elements, for what follows a prefix of JSON means the same after the
same prefix. In the text that is left a chosen word that nobody can guess holds the place of the
elements that were read; were it in the middle of a text, it would end it, and nothing could be
read. Whatever does not work out is read as a whole.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import orjson

__all__ = ["LONG_BYTES", "let_go", "parsed"]

LONG_BYTES = 256 << 10
"""JSON that is longer is read in pieces; two milliseconds are the price of as much."""
_PIECE_BYTES = 32 << 10
_LONGEST_PIECE_BYTES = 16 * _PIECE_BYTES
_FREED_AT_ONCE = 1 << 14
_TRIES = 8
_MAX_FAILURES = 64
_SPACE = b" \t\r\n"
_LIST_OF_KEY = re.compile(rb'"[ \t\r\n]*:[ \t\r\n]*\[')
_FIRST = re.compile(rb"[ \t\r\n]*(\[[\[ \t\r\n]*|.)", re.DOTALL)
_COMMA = re.compile(rb"[ \t\r\n]*,")


def parsed(raw: bytes | memoryview) -> Any:  # noqa: ANN401 (JSON enters here)
    """Return what JSON says; NaN and Infinity count as numbers.

    Raises:
        orjson.JSONDecodeError: It is not JSON.
    """
    if len(raw) > LONG_BYTES:
        try:
            found = _Pieces(bytes(raw)).read()
        except orjson.JSONDecodeError:
            found = None  # It is said below what is wrong, and where.
        if found is not None:
            return found
    return _whole(raw)


def let_go(document: dict[str, Any]) -> None:
    """Free the long lists of a document that nobody needs any more, some values at a time."""
    waiting: list[Any] = [document]
    while waiting:
        here = waiting.pop()
        for value in here.values() if type(here) is dict else here:
            if type(value) is dict or (type(value) is list and value and type(value[0]) is dict):
                waiting.append(value)
            while type(value) is list and len(value) > _FREED_AT_ONCE:
                del value[-_FREED_AT_ONCE:]


def _whole(raw: bytes | memoryview) -> Any:  # noqa: ANN401 (JSON enters here)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        # Clients in Python write such numbers.
        text = bytes(raw)
        if b"NaN" not in text and b"Infinity" not in text:
            raise
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
        raise


class _Pieces:
    """A long JSON text on its way to be read."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._word = secrets.token_hex(16)
        self._lists: dict[str, list[Any]] = {}
        self._patience = len(raw)

    def read(self) -> Any:  # noqa: ANN401 (JSON leaves here)
        """Return the document, or None where it has no long lists that can be told."""
        left, start, at, n_failures = [], 0, 0, 0
        while (
            self._patience > 0
            and n_failures < _MAX_FAILURES
            and len(self._raw) - start > _PIECE_BYTES
        ):
            opening = _LIST_OF_KEY.search(self._raw, at, at + _LONGEST_PIECE_BYTES)
            if opening is None:
                break
            at = opening.end()
            elements, end = self._elements(at)
            if not elements:
                n_failures += 1
                continue
            word = f"{self._word}{len(self._lists)}"
            self._lists[word] = elements
            left += [self._raw[start:at], b'"%b",' % word.encode()]
            start = at = end
        if not self._lists:
            return None
        left.append(self._raw[start:])
        document = _whole(b"".join(left))
        return document if self._filled(document) else None

    def _elements(self, at: int) -> tuple[list[Any], int]:
        """Read most of a list that begins here; return that, and where the rest begins."""
        found: list[Any] = []
        first = _FIRST.match(self._raw, at)
        closing = b"" if first is None else _closing(first[1])
        size = _PIECE_BYTES
        while size <= _LONGEST_PIECE_BYTES and self._patience > 0:
            piece, end = self._piece(at, at + size, closing)
            if piece is None and end:
                break
            if piece is None:
                size *= 2
                continue
            found += piece
            at, size = end, _PIECE_BYTES
        return found, at

    def _piece(self, start: int, stop: int, closing: bytes) -> tuple[list[Any] | None, int]:
        """Read as many elements as there are; no elements and an end say that the list ends."""
        for _ in range(_TRIES):
            place = self._raw.rfind(closing or b",", start, stop)
            if place < 0:
                return None, 0
            comma = _COMMA.match(self._raw, place + len(closing))
            stop = place + max(0, len(closing) - 1)
            if comma is None:
                continue
            text = self._raw[start : comma.end() - 1]
            if not closing and b"]" in text:
                return None, stop
            elements = self._tried(text)
            if elements:
                return elements, comma.end()
        return None, 0

    def _tried(self, text: bytes) -> list[Any]:
        try:
            elements: list[Any] = _whole(b"[%b]" % text)
        except orjson.JSONDecodeError:
            self._patience -= len(text)
            return []
        return elements

    def _filled(self, document: Any) -> bool:  # noqa: ANN401 (JSON is looked at)
        """Put the elements into their places; return whether all of them had one."""
        n_filled = 0
        waiting = [document]
        while waiting:
            here = waiting.pop()
            for key, value in here.items() if type(here) is dict else enumerate(here):
                if type(value) is list and value:
                    elements = self._lists.get(value[0]) if type(value[0]) is str else None
                    if elements is not None:
                        elements += value[1:]
                        here[key] = elements
                        n_filled += 1
                    elif type(value[0]) in (dict, list):
                        waiting.append(value)
                elif type(value) is dict:
                    waiting.append(value)
        return n_filled == len(self._lists)


def _closing(first: bytes) -> bytes:
    """Return how an element ends that begins so; nothing where only a comma tells."""
    depth = first.count(b"[")
    if depth:
        return b"]" * depth
    return {b"{": b"}", b'"': b'"'}.get(first, b"")
