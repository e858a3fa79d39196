"""Words into the pieces that the encoder knows: longest match first (Wu et al., 2016)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

__all__ = ["MAX_PIECES", "cut", "pieces_of"]

MAX_PIECES: Final = 96
"""Longest input of the encoder, with the marks of its begin and end."""

_TAIL: Final = 32
"""Of a longer text the begin and so many last pieces are kept: the question often stands last."""
_BEGIN, _END, _UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
_LONGEST_WORD: Final = 100
_CJK: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))


def pieces_of(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the numbers of the pieces of a text, at most `MAX_PIECES`, begin and end included.

    Args:
        text: Any text.
        vocabulary: Number of each piece; pieces inside a word begin with `##`.
    """
    found = [vocabulary[_BEGIN]]
    for word in _words(text):
        found += _split(word, vocabulary)
    found.append(vocabulary[_END])
    return cut(found)


def cut(pieces: list[int]) -> list[int]:
    """Return the begin and the end of a text that is longer than the encoder reads."""
    if len(pieces) <= MAX_PIECES:
        return pieces
    return pieces[: MAX_PIECES - _TAIL] + pieces[-_TAIL:]


def _split(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Cut a word into the longest pieces that are known, or call all of it unknown."""
    if len(word) > _LONGEST_WORD:
        return [vocabulary[_UNKNOWN]]
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        for end in range(len(word), start, -1):
            number = vocabulary.get(mark + word[start:end])
            if number is not None:
                break
        else:
            return [vocabulary[_UNKNOWN]]
        found.append(number)
        start = end
    return found


def _words(text: str) -> Iterator[str]:
    """Yield lower-case words without accents; marks and ideographs stand alone."""
    plain = unicodedata.normalize("NFD", text.lower())
    word: list[str] = []
    for char in plain:
        kind = _kind(char)
        if kind == "letter":
            word.append(char)
        elif kind != "dropped":
            if word:
                yield "".join(word)
                word = []
            if kind == "alone":
                yield char
    if word:
        yield "".join(word)


@lru_cache(maxsize=4096)
def _kind(char: str) -> str:
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return "space"
    category = unicodedata.category(char)
    if char == "\ufffd" or category == "Mn" or category in ("Cc", "Cf", "Cn", "Co", "Cs"):
        return "dropped"
    is_mark = category.startswith("P") or (char.isascii() and not char.isalnum())
    is_ideograph = any(low <= ord(char) <= high for low, high in _CJK)
    return "alone" if is_mark or is_ideograph else "letter"
