"""The seven questions, their options, and how an answer is understood."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Final

from pydantic import Field

from fairlead.core.errors import UsageError
from fairlead.core.values import Value
from fairlead.router.answers import Measurement, NeighbourId, QuestionId, SkillId
from fairlead.router.text import MAX_CHARS, tokens_of

__all__ = ["Ask", "Choice", "question_of", "understand"]


class Choice(Value):
    """One option: what it is called, how people say it, and where it leads."""

    id: str
    """What to pass as the answer."""
    label: str
    """The option in plain words."""
    says: tuple[str, ...]
    """Words by which a free answer is recognised."""
    skills: tuple[SkillId, ...] = ()
    """The route it gives."""
    also: tuple[SkillId, ...] = ()
    """Skills worth a look later."""
    redirect: NeighbourId | None = None
    """The neighbour it leads to."""
    next: QuestionId | None = None
    """The question it leads to."""


class Ask(Value):
    """A question with its options."""

    id: QuestionId
    """Id of the question."""
    text: str
    """The question in plain words."""
    why: str
    """Why it cannot be left out."""
    choices: tuple[Choice, ...]
    """The options, in the order in which they are numbered."""
    unsure: str | None = None
    """The option for people who cannot tell; None when nobody can choose for them."""
    measurements: tuple[Measurement, ...] = ()
    """What would answer it without asking."""

    def choice(self, option: str) -> Choice:
        """Return the option with this id."""
        return next(item for item in self.choices if item.id == option)


class _Book(Value):
    unsure: tuple[str, ...]
    question: tuple[Ask, ...] = Field(min_length=7, max_length=7)


@lru_cache(maxsize=1)
def _book() -> _Book:
    source = resources.files("fairlead.router") / "data" / "questions.toml"
    return _Book.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))


def question_of(question: QuestionId) -> Ask:
    """Return a question by its id."""
    return next(item for item in _book().question if item.id == question)


_NOT: Final = frozenset({"not", "no", "isnt", "never", "without", "neither", "arent", "wasnt"})
_SKIPPED_AFTER_NOT: Final = frozenset({"the", "a", "an", "my", "our", "about", "in", "on", "so"})


def understand(ask: Ask, answer: str) -> Choice:
    """Return the option that an answer means.

    Raises:
        UsageError: The answer fits no option, or fits several equally well.
    """
    if len(answer) > MAX_CHARS:
        raise _refuse(ask, answer)
    named = _named(ask, answer)
    if named:
        return named
    words = tokens_of(answer)
    votes = {item.id: _votes(item, words) for item in ask.choices}
    if not any(votes.values()):
        return _unsure_or_close(ask, answer, words)
    both = next((item for item in ask.choices if item.id == "both"), None)
    if both and (votes["both"] or sum(count > 0 for count in votes.values()) > 1):
        return both
    best = sorted(votes.values(), reverse=True)
    if len(best) > 1 and best[0] == best[1]:
        raise _refuse(ask, answer)
    return ask.choice(max(votes, key=lambda option: votes[option]))


def _named(ask: Ask, answer: str) -> Choice | None:
    plain = answer.strip().strip(".)(").casefold()
    if plain.isdecimal():
        number = int(plain) if len(plain) < 4 else 0
        return ask.choices[number - 1] if 1 <= number <= len(ask.choices) else None
    for item in ask.choices:
        if plain in {item.id, item.id.replace("-", " "), item.label.casefold()}:
            return item
    return None


def _votes(choice: Choice, words: tuple[str, ...]) -> int:
    """Count the words of the answer that an option claims; the longest phrase at each place."""
    covered: set[int] = set()
    for phrase in _compiled(choice.says):
        for first in _places(words, phrase):
            if not _is_negated(words, first):
                covered.update(range(first, first + len(phrase)))
    return len(covered)


@lru_cache(maxsize=64)
def _compiled(says: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tokens_of(item) for item in says)


def _places(words: tuple[str, ...], phrase: tuple[str, ...]) -> Iterator[int]:
    for first in range(len(words) - len(phrase) + 1):
        if words[first : first + len(phrase)] == phrase:
            yield first


def _occurs(words: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    return next(_places(words, phrase), None) is not None


def _is_negated(words: tuple[str, ...], first: int) -> bool:
    at = first - 1
    while at >= 0 and words[at] in _SKIPPED_AFTER_NOT:
        at -= 1
    return at >= 0 and words[at] in _NOT


def _unsure_or_close(ask: Ask, answer: str, words: tuple[str, ...]) -> Choice:
    unsure = any(_occurs(words, phrase) for phrase in _compiled(_book().unsure))
    if unsure and ask.unsure:
        return ask.choice(ask.unsure)
    ids = [item.id for item in ask.choices]
    for word in answer.casefold().split()[:50]:
        close = difflib.get_close_matches(word[:40], ids, n=1, cutoff=0.75)
        if close:
            return ask.choice(close[0])
    raise _refuse(ask, answer)


def _refuse(ask: Ask, answer: str) -> UsageError:
    shown = answer if len(answer) <= 60 else answer[:57] + "..."
    listed = ", ".join(f"{number}) {item.id}" for number, item in enumerate(ask.choices, 1))
    return UsageError(
        f"`{shown}` does not answer the question `{ask.id}`", hint=f"answer with one of {listed}"
    )
