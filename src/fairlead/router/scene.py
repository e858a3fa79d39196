"""Typed facts: what a text says, before anybody decides what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

from fairlead.router.answers import Facts, Span
from fairlead.router.lexicon import Hit, Lexicon, Tool, load_fillers, load_lexicon
from fairlead.router.spelling import repaired
from fairlead.router.text import Reading, read, tokens_of

__all__ = ["Scene", "leading_words", "observe"]

_NEGATIONS: Final = tuple(
    tokens_of(phrase)
    for phrase in (
        "dont need", "do not need", "doesnt need", "no need", "dont want", "do not want",
        "not want", "without", "instead of", "rather than", "not about", "isnt about",
        "not asking", "not interested in", "nothing to do with", "not looking",
        "not a question of",
    )
)  # fmt: skip
_NEGATION_REACH: Final = 3
_DONE: Final = {"deployed": "phase.deployed", "profiled": "bottleneck.profiled"}
_GOING_ON: Final = tuple(
    f"training {word}" for word in ("a", "an", "my", "our", "the", "model", "and")
)
_CAN_BE_NEGATED: Final = ("skill.", "verb.", "target.", "neighbour.")
_PREPOSITIONS: Final = frozenset(
    {"on", "to", "in", "into", "onto", "with", "using", "us", "via", "through", "at", "auf", "mit",
     "en", "con", "sur", "avec", "на", "в", "через"}
)  # fmt: skip
_ARTICLES: Final = frozenset({"a", "an", "the", "my", "our"})


@dataclass(frozen=True)
class Scene:
    """The concepts, tools and facts of one text."""

    reading: Reading
    hits: tuple[Hit, ...]
    negated: tuple[Hit, ...]
    tools: tuple[Tool, ...]
    tool_facts: frozenset[str]

    @cached_property
    def names(self) -> frozenset[str]:
        """Every concept that is spoken of and not ruled out."""
        return frozenset(hit.concept for hit in self.hits)

    def has(self, *concepts: str) -> bool:
        """Tell whether any of the concepts is spoken of."""
        return any(concept in self.names for concept in concepts)

    @cached_property
    def skills(self) -> tuple[str, ...]:
        """Short names of the skills whose own words occur, in the order of the text."""
        found = [hit.concept for hit in self.hits if hit.concept.startswith("skill.")]
        return tuple(dict.fromkeys(name.removeprefix("skill.") for name in found))

    @property
    def is_llm(self) -> bool:
        """Whether a language model is spoken of."""
        return self.has("object.llm") or "llm" in self.tool_facts

    def spans(self, concepts: Iterable[str]) -> tuple[Span, ...]:
        """Return the places where the concepts were found."""
        wanted = set(concepts)
        return tuple(
            Span(
                text=self.reading.phrase(hit.first, hit.last),
                start=self.reading.starts[hit.first],
                end=self.reading.ends[hit.last],
                says=hit.concept,
            )
            for hit in self.hits
            if hit.concept in wanted
        )

    @cached_property
    def is_understood(self) -> bool:
        """Whether every word is known: a concept, a product, a number or a filler."""
        places = [(hit.first, hit.last) for hit in (*self.hits, *self.negated)]
        places += [(tool.first, tool.last) for tool in self.tools]
        known = {at for first, last in places for at in range(first, last + 1)}
        return all(
            at in known or word.isdecimal() or word in load_fillers()
            for at, word in enumerate(self.reading.stems)
        )

    @cached_property
    def facts(self) -> Facts:
        """The typed facts."""
        return Facts(
            phase=_phase(self),
            slow_phase=_slow_phase(self),
            performance=_performance(self),
            target=_target(self),
            bottleneck=_bottleneck(self),
            concerns=tuple(dict.fromkeys(hit.concept for hit in self.hits)),
            negated=tuple(dict.fromkeys(hit.concept for hit in self.negated)),
            tools=tuple(dict.fromkeys(tool.name for tool in self.tools)),
        )


def observe(text: str) -> Scene:
    """Read a text and find the facts in it.

    Raises:
        UsageError: The text is empty, too long, or holds no words.
    """
    reading = _spelled(read(text))
    lexicon = load_lexicon()
    tools = lexicon.tools(reading)
    found = [_as_state(reading, hit) for hit in lexicon.concepts(reading, tools)]
    kept = _without_swallowed(found)
    negated = tuple(hit for hit in kept if _is_negated(reading, hit))
    hits = tuple(hit for hit in kept if hit not in negated)
    return Scene(reading, hits, negated, tuple(tools), _tool_facts(lexicon, reading, hits, tools))


def _spelled(reading: Reading) -> Reading:
    """Read words nobody knows as the words they are slips of."""
    return replace(reading, stems=tuple(repaired(stem) for stem in reading.stems))


def _as_state(reading: Reading, hit: Hit) -> Hit:
    """Read "deployed" and "profiled" as what has been done, not as what is wanted."""
    words = reading.phrase(hit.first, hit.last).casefold()
    before = reading.stems[max(0, hit.first - 2) : hit.first]
    if hit.concept == "phase.trained" and words.endswith(_GOING_ON):
        return Hit("phase.training", hit.first, hit.last)
    if words in _DONE and not {"get", "be"} & set(before):
        return Hit(_DONE[words], hit.first, hit.last)
    return hit


def _without_swallowed(hits: list[Hit]) -> list[Hit]:
    """Drop a skill or verb whose words lie inside a longer phrase of another skill."""
    owners = [hit for hit in hits if hit.concept.startswith(("skill.", "neighbour."))]
    return [hit for hit in hits if not any(_swallows(owner, hit) for owner in owners)]


def _swallows(owner: Hit, hit: Hit) -> bool:
    if owner.concept == hit.concept or not hit.concept.startswith(("skill.", "verb.")):
        return False
    inside = owner.first <= hit.first and hit.last <= owner.last
    if inside and owner.last - owner.first > hit.last - hit.first:
        return True
    # "automate our deployment": the deployment is what is automated, not a wish of its own.
    follows = 0 < hit.first - owner.last <= 2
    return owner.concept == "skill.automation" and hit.concept == "verb.deploy" and follows


def _is_negated(reading: Reading, hit: Hit) -> bool:
    if not hit.concept.startswith(_CAN_BE_NEGATED):
        return False
    for words in _NEGATIONS:
        earliest = max(0, hit.first - len(words) - _NEGATION_REACH)
        for first in range(earliest, hit.first - len(words) + 1):
            if reading.stems[first : first + len(words)] == words:
                return reading.sentences[first] == reading.sentences[hit.first]
    return False


def _tool_facts(
    lexicon: Lexicon, reading: Reading, hits: tuple[Hit, ...], tools: list[Tool]
) -> frozenset[str]:
    facts = {kind for kind in ("classical", "llm", "torch") if lexicon.tool_fact(kind, tools)}
    for target in ("cloud", "edge", "batch"):
        named = lexicon.tool_fact(target, tools)
        if any(_is_destination(reading, hits, tool) for tool in named):
            facts.add(target)
    return frozenset(facts)


def _is_destination(reading: Reading, hits: tuple[Hit, ...], tool: Tool) -> bool:
    """Tell whether something is to be deployed on or with the tool, in the same sentence."""
    if not leading_words(reading, tool.first):
        return False
    sentence = reading.sentences[tool.first]
    return any(
        hit.concept == "verb.deploy"
        and hit.last < tool.first
        and reading.sentences[hit.first] == sentence
        for hit in hits
    )


def leading_words(reading: Reading, first: int) -> range:
    """Return the places of "on the" or "with" directly before a word; empty when there is none."""
    before = first - 1
    while before >= 0 and reading.stems[before] in _ARTICLES:
        before -= 1
    found = before >= 0 and reading.stems[before] in _PREPOSITIONS
    return range(before, first) if found else range(first, first)


def _phase(scene: Scene) -> Literal["untrained", "training", "trained", "deployed", "fault"] | None:
    if scene.has("phase.untrained") and not scene.has("phase.trained"):
        return "untrained"
    if scene.has("symptom.failing") and scene.has("phase.production", "phase.deployed"):
        return "fault"
    if scene.has("phase.deployed"):
        return "deployed"
    if scene.has("phase.trained"):
        return "trained"
    return "training" if scene.has("phase.training") else None


def _slow_phase(scene: Scene) -> Literal["inference", "training"] | None:
    if not scene.has("symptom.slow"):
        return None
    if scene.has("phase.inference"):
        return "inference"
    is_training = scene.has("neighbour.train_slow") or (
        scene.has("phase.training") and not scene.has("phase.trained", "phase.production")
    )
    return "training" if is_training else None


def _performance(scene: Scene) -> Literal["speed", "accuracy"] | None:
    if not scene.has("symptom.performance"):
        return None
    if scene.has("symptom.accuracy"):
        return "accuracy"
    return "speed" if scene.has("symptom.slow") else None


def _target(scene: Scene) -> Literal["cloud", "edge", "batch"] | None:
    for target in ("edge", "batch", "cloud"):
        if scene.has(f"target.{target}") or target in scene.tool_facts:
            return target
    return None


def _bottleneck(scene: Scene) -> Literal["model", "infrastructure", "not-profiled"] | None:
    if scene.has("bottleneck.unprofiled"):
        return "not-profiled"
    if scene.has("bottleneck.infra_bound"):
        return "infrastructure"
    return "model" if scene.has("bottleneck.model_bound") else None
