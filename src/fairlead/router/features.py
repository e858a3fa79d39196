"""Features of a text for the scorer: words, word pairs, pieces of words, concepts, meaning."""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fairlead.router.lexicon import load_fillers
from fairlead.router.meaning import DIMENSIONS, meaning_of
from fairlead.router.scene import Scene, leading_words

__all__ = ["BUCKETS", "SIZE", "features_of", "places_that_count"]

BUCKETS: Final = 1 << 15
"""Number of hash buckets; the meaning of the text stands behind them."""
SIZE: Final = BUCKETS + DIMENSIONS
"""Length of a feature vector."""

# A problem is stated early and often repeated last; between are logs, configuration and code.
_MAX_WORDS: Final = 160
_LAST_WORDS: Final = 20
_FIRST_WORDS: Final = 14
# Without any of these a rollout, an endpoint or a queue may belong to any software.
_ABOUT_MODELS: Final = (
    "object.model",
    "object.llm",
    "phase.inference",
    "phase.training",
    "neighbour.llm_only",
    "neighbour.architecture",
    "neighbour.train_quality",
)
_DESTINATIONS: Final = ("cloud", "edge", "batch")
_PIECE_LENGTHS: Final = (3, 4, 5)
_LOGGED: Final = frozenset({"info", "debug", "trace"})
_LOG_HEAD: Final = 10
_MEANING_LENGTH: Final = np.float32(1.5)


def features_of(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the features of a text and their weights; product names leave no trace.

    Returns:
        Indexes below `SIZE`, shape (n,), ascending and unique, and weights, shape (n,), of fixed
        length in each group of features, so that a long text weighs no more than a short one.
        The last `DIMENSIONS` features are the meaning of the text.
    """
    words = _words(scene)
    found: defaultdict[int, float] = defaultdict(float)
    for group, weight in (
        (_word_features(words), 1.0),
        (_piece_features(words), 0.7),
        (_concept_features(scene), 1.2),
    ):
        _add(found, Counter(group), weight)
    buckets = sorted(found)
    places = np.array([*buckets, *range(BUCKETS, SIZE)], dtype=np.int64)
    hashed = np.array([found[at] for at in buckets], dtype=np.float32)
    return places, np.concatenate([hashed, _MEANING_LENGTH * meaning_of(Counter(words))])


def _add(found: defaultdict[int, float], group: Counter[str], weight: float) -> None:
    values = {name: 1.0 + math.log(count) for name, count in group.items()}
    length = math.sqrt(sum(value * value for value in values.values())) or 1.0
    for name, value in values.items():
        found[zlib.crc32(name.encode()) % BUCKETS] += weight * value / length


def _words(scene: Scene) -> list[str]:
    """Return the stems that count, numbers all alike."""
    stems = scene.reading.stems
    kept = ["0" if stems[at].isdecimal() else stems[at] for at in places_that_count(scene)]
    if len(kept) <= _MAX_WORDS:
        return kept
    return kept[: _MAX_WORDS - _LAST_WORDS] + kept[-_LAST_WORDS:]


def places_that_count(scene: Scene) -> list[int]:
    """Return the places of the words that count: no product, nor the preposition before it.

    What a log tells in passing, what was said before, and sentences that only name products are
    left out as well.
    """
    hidden = {at for tool in scene.tools for at in range(tool.first, tool.last + 1)}
    for tool in scene.tools:
        hidden |= set(leading_words(scene.reading, tool.first))
    hidden |= _empty_sentences(scene, hidden) | _log_sentences(scene)
    return [at for at in range(len(scene.reading.stems)) if at not in hidden]


def _empty_sentences(scene: Scene, hidden: set[int]) -> set[int]:
    """Return the words of sentences that only name products, such as "We use Docker"."""
    said = {scene.reading.sentences[at] for at in hidden}
    for at, (word, sentence) in enumerate(
        zip(scene.reading.stems, scene.reading.sentences, strict=True)
    ):
        if at not in hidden and word not in load_fillers():
            said.discard(sentence)
    return {at for at, sentence in enumerate(scene.reading.sentences) if sentence in said}


def _log_sentences(scene: Scene) -> set[int]:
    """Return the words of what a log tells in passing, and of sentences that were said before."""
    by_sentence: defaultdict[int, list[int]] = defaultdict(list)
    for at, sentence in enumerate(scene.reading.sentences):
        by_sentence[sentence].append(at)
    said: set[tuple[str, ...]] = set()
    found: set[int] = set()
    for places in by_sentence.values():
        words = tuple(scene.reading.stems[at] for at in places)
        if words in said or (words[0].isdecimal() and _LOGGED & set(words[:_LOG_HEAD])):
            found.update(places)
        said.add(words)
    return found


def _word_features(words: list[str]) -> Iterator[str]:
    for at, word in enumerate(words):
        yield f"w {word}"
        if at < _FIRST_WORDS:
            yield f"f {word}"
    for first, second in pairwise(words):
        yield f"b {first} {second}"
    for first, _, third in zip(words, words[1:], words[2:], strict=False):
        yield f"s {first} {third}"


def _piece_features(words: list[str]) -> Iterator[str]:
    for word in words:
        if len(word) > 3:
            framed = f"<{word}>"
            for size in _PIECE_LENGTHS:
                for at in range(len(framed) - size + 1):
                    yield f"p {framed[at : at + size]}"


def _concept_features(scene: Scene) -> Iterator[str]:
    yield from (f"c {hit.concept}" for hit in scene.hits)
    yield from (f"n {hit.concept}" for hit in scene.negated)
    yield from (f"d {fact}" for fact in _DESTINATIONS if fact in scene.tool_facts)
    yield from _concept_pairs(scene)
    if scene.hits:
        yield f"1 {scene.hits[0].concept}"
    if not scene.has(*_ABOUT_MODELS):
        yield "m"
        yield from (f"m {name}" for name in scene.names)


def _concept_pairs(scene: Scene) -> Iterator[str]:
    by_sentence: defaultdict[int, set[str]] = defaultdict(set)
    for hit in scene.hits:
        by_sentence[scene.reading.sentences[hit.first]].add(hit.concept)
    for names in by_sentence.values():
        yield from (f"k {first} {second}" for first, second in combinations(sorted(names), 2))
