"""The words of the field: finding concepts and product names in a text."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Final

from fairlead.router.text import Reading, stem, tokens_of

__all__ = ["Hit", "Lexicon", "Tool", "load_fillers", "load_lexicon"]

_MAX_GAP: Final = 3
_MAX_TOOL_TOKENS: Final = 4

Element = tuple[tuple[str, ...], ...]
"""Alternatives at one place of a phrase; an empty element is a gap."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One concept at one place of the text, as indexes of tokens, both included."""

    concept: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A named product at one place of the text."""

    name: str
    home: str
    first: int
    last: int


class Lexicon:
    """Concepts and product names, compiled for matching.

    Attributes:
        stems: Every word that a phrase is made of.
        name_stems: Every word that the name of a product is made of.
    """

    def __init__(
        self,
        concepts: Mapping[str, Mapping[str, Iterable[str]]],
        tools: Mapping[str, Iterable[str]],
        facts: Mapping[str, Iterable[str]],
    ) -> None:
        self._phrases: dict[str, list[tuple[str, tuple[Element, ...]]]] = {}
        self._concepts = concepts
        for group, entries in concepts.items():
            for name, phrases in entries.items():
                for phrase in phrases:
                    self._add(f"{group}.{name}", phrase)
        self._tools = {
            tokens_of(name): (name, home) for home, names in tools.items() for name in names
        }
        self._facts = {fact: frozenset(names) for fact, names in facts.items()}
        self.stems = frozenset(self._phrase_words())
        self.name_stems = frozenset(word for words in self._tools for word in words)

    @cached_property
    def words(self) -> dict[str, str]:
        """Stem of every word of a phrase → its shortest form, in full; only slips need it."""
        phrases = (
            phrase
            for entries in self._concepts.values()
            for some in entries.values()
            for phrase in some
        )
        words = {word for phrase in phrases for word in re.findall(r"\w+", phrase)}
        return {stem(word): word for word in sorted(words, key=lambda word: (-len(word), word))}

    def _add(self, concept: str, phrase: str) -> None:
        elements = tuple(_element(part) for part in phrase.split())
        for alternative in elements[0]:
            self._phrases.setdefault(alternative[0], []).append((concept, elements))

    def _phrase_words(self) -> Iterator[str]:
        for phrases in self._phrases.values():
            for _, elements in phrases:
                yield from (word for element in elements for words in element for word in words)

    def tools(self, reading: Reading) -> list[Tool]:
        """Return the products that the text names, longest name first at each place."""
        found: list[Tool] = []
        at = 0
        while at < len(reading.stems):
            tool = self._tool_at(reading.stems, at)
            if tool:
                found.append(tool)
            at = tool.last + 1 if tool else at + 1
        return found

    def _tool_at(self, stems: tuple[str, ...], at: int) -> Tool | None:
        for size in range(min(_MAX_TOOL_TOKENS, len(stems) - at), 0, -1):
            known = self._tools.get(stems[at : at + size])
            if known:
                return Tool(known[0], known[1], at, at + size - 1)
        return None

    def tool_fact(self, fact: str, tools: Iterable[Tool]) -> list[Tool]:
        """Return the tools whose name gives a fact away, for example `cloud`."""
        return [tool for tool in tools if tool.name in self._facts[fact]]

    def concepts(self, reading: Reading, tools: Iterable[Tool]) -> list[Hit]:
        """Return every concept in the text; product names are looked through, not read."""
        hidden = {at for tool in tools for at in range(tool.first, tool.last + 1)}
        places = [at for at in range(len(reading.stems)) if at not in hidden]
        stems = [reading.stems[at] for at in places]
        sentences = [reading.sentences[at] for at in places]
        found: set[Hit] = set()
        for at, word in enumerate(stems):
            for concept, elements in self._phrases.get(word, ()):
                end = _match(stems, sentences, at, elements)
                if end is not None:
                    found.add(Hit(concept, places[at], places[end - 1]))
        return sorted(found, key=lambda hit: (hit.first, hit.last, hit.concept))


def _element(part: str) -> Element:
    if part == "..":
        return ()
    return tuple(tokens_of(word) for word in part.split("|"))


def _match(
    stems: list[str], sentences: list[int], at: int, elements: tuple[Element, ...]
) -> int | None:
    """Return the index after the phrase when it begins at `at`, within one sentence."""
    ends = {at}
    gap = 0
    for element in elements:
        if not element:
            gap = _MAX_GAP
            continue
        ends = set(_step(stems, ends, element, gap))
        gap = 0
        if not ends:
            return None
    end = min(ends)
    return end if sentences[end - 1] == sentences[at] else None


def _step(stems: list[str], ends: set[int], element: Element, gap: int) -> Iterator[int]:
    for end in ends:
        for start in range(end, min(end + gap, len(stems)) + 1):
            for words in element:
                if tuple(stems[start : start + len(words)]) == words:
                    yield start + len(words)


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """Read the lexicon that ships with the package, once."""
    tools = _data("tools.toml")
    homes = {home: entry["names"] for home, entry in tools["home"].items()}
    # What serves models runs on a server, so "deploy with it" says where.
    facts = tools["fact"] | {"cloud": [*tools["fact"]["cloud"], *homes["serving"]]}
    return Lexicon(_data("lexicon.toml"), homes, facts)


@lru_cache(maxsize=1)
def load_fillers() -> frozenset[str]:
    """Return the stems that carry no meaning of their own, read once."""
    words: list[str] = _data("fillers.toml")["words"]
    return frozenset(part for word in words for part in tokens_of(word))


def _data(name: str) -> dict[str, Any]:
    return tomllib.loads(
        (resources.files("fairlead.router") / "data" / name).read_text(encoding="utf-8")
    )
