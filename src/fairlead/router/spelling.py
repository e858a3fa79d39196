"""Slips of the finger: a word nobody knows is read as the known word that is one letter away."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from fairlead.router.encoder import load_encoder
from fairlead.router.lexicon import load_lexicon
from fairlead.router.meaning import load_vectors

__all__ = ["repaired"]

_SHORTEST: Final = 5
_SHORTEST_OF_FIELD: Final = 4
"""Fewest letters of a word of the field that others may be slips of."""
_COMMON: Final = 1.1
"""Largest weight of a word that others are taken to be slips of: some 60 in 6.7 million words."""


@lru_cache(maxsize=20_000)
def repaired(stem: str) -> str:
    """Return the known stem that an unknown one is a slip of, or the stem itself.

    A slip is one letter left out, added, changed, or swapped with its neighbour; the first letter
    is never wrong. In short words only two may be swapped, and in those of the field a letter
    inside may be missing or written twice. Found as in SymSpell: words one letter apart share a
    spelling with one letter left out.

    Examples:
        >>> repaired("deplyoment"), repaired("latency"), repaired("flurbish")
        ('deployment', 'latency', 'flurbish')
    """
    if not _is_word(stem) or _is_known(stem):
        return stem
    forms, index = _known_forms()
    near = {form for key in _shortened(stem) for form in index.get(key, ())}
    close = [form for form in near if form[0] == stem[0] and _is_slip(stem, form)]
    return forms[min(close, key=_rank)] if close else stem


def _is_known(stem: str) -> bool:
    lexicon = load_lexicon()
    known = (lexicon.stems, lexicon.name_stems, load_vectors().places)
    return any(stem in words for words in known) or stem in load_encoder().vocabulary


def _rank(form: str) -> tuple[bool, float, str]:
    vectors = load_vectors()
    place = vectors.places.get(form)
    weight = float(vectors.weights[place]) if place is not None else _COMMON
    return _known_forms()[0][form] not in load_lexicon().stems, weight, form


def _is_word(stem: str) -> bool:
    return len(stem) >= _SHORTEST_OF_FIELD and stem.isascii() and stem.isalpha()


def _shortened(word: str) -> Iterator[str]:
    yield word
    for at in range(len(word)):
        yield word[:at] + word[at + 1 :]


def _is_slip(one: str, form: str) -> bool:
    """Tell whether a word is one edit away from a known form."""
    if len(one) == len(form):
        return _is_changed(one, form)
    if abs(len(one) - len(form)) > 1:
        return False
    short, long = sorted((one, form), key=len)
    if short not in set(_shortened(long)):
        return False
    if len(short) > _SHORTEST:
        return True
    if _known_forms()[0][form] not in load_lexicon().stems:
        return False
    return one[-1] == form[-1] and (_is_stutter(short, long) or long == form)


def _is_changed(one: str, other: str) -> bool:
    """Tell whether one letter is another, or two neighbours are swapped."""
    wrong = [at for at in range(len(one)) if one[at] != other[at]]
    if len(wrong) == 1:
        return len(one) > _SHORTEST
    is_pair = len(wrong) == 2 and wrong[1] == wrong[0] + 1
    return is_pair and one[wrong[0]] == other[wrong[1]] and one[wrong[1]] == other[wrong[0]]


def _is_stutter(short: str, long: str) -> bool:
    """Tell whether the longer word only has a letter twice."""
    return any(
        long[at] == long[at + 1] and short == long[:at] + long[at + 1 :]
        for at in range(len(long) - 1)
    )


@lru_cache(maxsize=1)
def _known_forms() -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return what words may be slips of, with its stem, and by spellings with a letter left out."""
    vectors = load_vectors()
    common = (word for word, at in vectors.places.items() if vectors.weights[at] <= _COMMON)
    forms = {word: word for word in common if _is_word(word) and len(word) >= _SHORTEST}
    for word in sorted(load_lexicon().stems):
        if word.isascii() and word.isalpha() and len(word) >= _SHORTEST_OF_FIELD:
            forms |= {word: word, f"{word}ing": word}
    found: dict[str, list[str]] = {}
    for form in sorted(forms):
        for key in _shortened(form):
            found.setdefault(key, []).append(form)
    return forms, {key: tuple(words) for key, words in found.items()}
