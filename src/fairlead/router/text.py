"""Reading a text: limits, tokens with their places, stems and sentences."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fairlead.core.errors import UsageError
from fairlead.router.courtesy import courtesies

__all__ = ["MAX_CHARS", "Reading", "read", "stem", "tokens_of"]

MAX_CHARS: Final = 100_000
"""Longest text that is taken, in characters."""

# People state the problem where they begin and repeat it where they end; logs sit between.
_HEAD_CHARS: Final = 6_000
_TAIL_CHARS: Final = 2_000
_MAX_UNREADABLE_SHARE: Final = 0.02

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(
    rf"https?://\S+|[{_CJK}]|\d+|%|[^\W\d_{_CJK}](?:[^\W_{_CJK}]|['\u2019](?=[^\W\d_]))*"
)
_STOP = re.compile(r"[.!?;:]\s|[\n\u3002\uff01\uff1f\uff1b]")
_HINT = "describe the problem in a few sentences, for example: my model answers too slowly"


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as the router sees it: one entry per token in each tuple."""

    text: str
    stems: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    sentences: tuple[int, ...]

    def phrase(self, first: int, last: int) -> str:
        """Return the user's own words from one token to another, both included."""
        return self.text[self.starts[first] : self.ends[last]]


def read(text: str) -> Reading:
    """Check a text and split it into tokens.

    Raises:
        UsageError: The text is empty, too long, or holds no words.
    """
    _check(text)
    kind = [span for start, stop in _windows(text) for span in courtesies(text, start, stop)]
    found = _split(text, kind)
    if kind and not _has_words(found):
        found = _split(text, [])
    if not _has_words(found):
        raise UsageError("the text holds no words", hint=_HINT)
    return found


def _has_words(reading: Reading) -> bool:
    return any(item[:1].isalpha() for item in reading.stems)


def _split(text: str, left_out: list[tuple[int, int]]) -> Reading:
    """Split a text into tokens, apart from addresses and what lies in the parts left out."""
    stems: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    sentences: list[int] = []
    sentence = 0
    for start, stop in _windows(text):
        previous = start
        for found in _TOKEN.finditer(text, start, stop):
            if stems and _STOP.search(text, previous, found.start()):
                sentence += 1
            previous = found.end()
            if found.group().startswith("http") or _lies_in(left_out, found.start()):
                continue
            stems.append(stem(found.group()))
            starts.append(found.start())
            ends.append(found.end())
            sentences.append(sentence)
        sentence += 1
    return Reading(text, tuple(stems), tuple(starts), tuple(ends), tuple(sentences))


def _lies_in(spans: list[tuple[int, int]], place: int) -> bool:
    at = bisect_right(spans, place, key=lambda span: span[0]) - 1
    return at >= 0 and place < spans[at][1]


def _check(text: str) -> None:
    if len(text) > MAX_CHARS:
        raise UsageError(
            f"the text has {len(text):,} characters, the limit is {MAX_CHARS:,}",
            hint="keep the sentences that say what is wrong and leave the logs out",
        )
    if not text.strip():
        raise UsageError("the text is empty", hint=_HINT)
    shown = "".join(part for start, stop in _windows(text) for part in (text[start:stop],))
    unreadable = sum(_is_unreadable(char) for char in set(shown) for _ in range(shown.count(char)))
    if unreadable > _MAX_UNREADABLE_SHARE * len(shown) or _has_surrogate(shown):
        raise UsageError("the text is not readable, it looks like binary data", hint=_HINT)


def _is_unreadable(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char == "\ufffd" or unicodedata.category(char) in {"Cc", "Cn", "Co", "Cs"}


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in set(text))


def _windows(text: str) -> list[tuple[int, int]]:
    if len(text) <= _HEAD_CHARS + _TAIL_CHARS:
        return [(0, len(text))]
    last = len(text) - _TAIL_CHARS
    # Where there are lines they stay whole: half a line of a log looks like a sentence.
    stop = text.rfind("\n", _HEAD_CHARS // 2, _HEAD_CHARS)
    start = text.find("\n", last, len(text) - _TAIL_CHARS // 2)
    return [(0, _HEAD_CHARS if stop < 0 else stop), (last if start < 0 else start, len(text))]


def tokens_of(phrase: str) -> tuple[str, ...]:
    """Return the stems of a phrase, split exactly as a text is split."""
    return tuple(stem(found) for found in _TOKEN.findall(phrase))


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """Cut a word to the part that its forms share.

    Examples:
        >>> stem("Serving"), stem("served"), stem("serve")
        ('serv', 'serv', 'serv')
        >>> stem("optimise") == stem("optimizing")
        True
    """
    word = unicodedata.normalize("NFKC", word).casefold().replace("'", "").replace("\u2019", "")
    if not word.isascii() or len(word) < 4:
        return word
    return _strip_e(_strip_verb(_british(_strip_plural(word))))


def _british(word: str) -> str:
    word = word.replace("isation", "ization")
    for end in ("ise", "ised", "ising"):
        if word.endswith(end) and len(word) >= 7:
            return f"{word[: -len(end)]}iz{end[2:]}"
    return word


def _strip_plural(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is", "ous")):
        return word[:-1]
    return word


def _strip_verb(word: str) -> str:
    for end in ("ing", "ed"):
        root = word[: -len(end)]
        if word.endswith(end) and len(root) >= 3 and re.search("[aeiouy]", root):
            return root[:-1] if root[-1] == root[-2] and root[-1] not in "lsz" else root
    return word


def _strip_e(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
