"""What the encoder reads: the user's own words, without products, logs and most marks."""

from __future__ import annotations

from typing import Final

from fairlead.router.features import places_that_count
from fairlead.router.lexicon import load_lexicon
from fairlead.router.scene import Scene
from fairlead.router.text import stem

__all__ = ["surface_of"]

_MARKS: Final = frozenset(",;:?")
"""Marks that tell something; a bracket may only belong to the name of a product."""
_LANGUAGE_MODEL: Final = "llm"


def surface_of(scene: Scene) -> str:
    """Return a text as it is read by the encoder.

    A product leaves no trace, unless it is a language model: that changes who is asked.

    Examples:
        >>> from fairlead.router.scene import observe
        >>> surface_of(observe("Why is it slow? (We use Docker.)"))
        'Why is it slow?'
    """
    reading = scene.reading
    counted = set(places_that_count(scene))
    named = {tool.first for tool in load_lexicon().tool_fact("llm", scene.tools)}
    words: list[str] = []
    sentence = -1
    for at, (start, end) in enumerate(zip(reading.starts, reading.ends, strict=True)):
        if at not in counted and at not in named:
            continue
        if words and reading.sentences[at] != sentence and words[-1][-1] not in _MARKS:
            words[-1] += "."
        sentence = reading.sentences[at]
        mark = reading.text[end : end + 1]
        typed = reading.text[start:end]
        word = _spelled(typed, reading.stems[at]) if at in counted else _LANGUAGE_MODEL
        words.append(word + (mark if mark in _MARKS else ""))
    return " ".join(words)


def _spelled(word: str, read_as: str) -> str:
    """Return a word as it was typed, or, where that was a slip, the word of the field it was."""
    return word if stem(word) == read_as else load_lexicon().words.get(read_as, word)
