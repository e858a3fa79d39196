"""Asking the router: with what the workspace knows, and one by one for many problems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

from fairlead.api.context import Context
from fairlead.core.artifact import Artifact
from fairlead.core.bundle import Bundle
from fairlead.core.errors import UsageError
from fairlead.core.evidence import Evidence
from fairlead.router import Answer, ask_batch
from fairlead.router import ask as ask_router

__all__ = ["answer_document", "ask", "ask_lines"]


def ask(
    text: str,
    *,
    answers: Sequence[str] = (),
    evidence: Sequence[Evidence] = (),
    model: str | None = None,
    context: Context | None = None,
) -> Answer:
    """Name the concern behind a problem, or ask the one question that decides it.

    Args:
        text: The problem in the user's own words.
        answers: Answers to earlier questions, in order: option ids, numbers or free text.
        evidence: Measurements that may settle a question without asking.
        model: Reference of the model; measurements of it that the workspace holds are read too.
        context: Workspace to read measurements from; opened from the environment when None.

    Returns:
        A route, one question, or a redirect to a neighbour.

    Raises:
        UsageError: The text is empty or too long, or an answer fits no option.
        NotFoundError: There is no such model.
    """
    known = list(evidence)
    if model is not None:
        known += _measured(model, context or Context.open())
    return ask_router(text, answers=tuple(answers), evidence=known)


def _measured(model: str, context: Context) -> list[Evidence]:
    artifact = Artifact.from_reference(model)
    subject = artifact.digest
    if artifact.format == "bundle" and artifact.path is not None:
        subject = Bundle.open(artifact.path).digest
    return context.evidence.query(subject=subject)


def answer_document(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON: `skills` are plain ids in order, `steps` tell why each."""
    document = answer.model_dump(mode="json")
    document["steps"] = document["skills"]
    document["skills"] = list(answer.skill_ids)
    return document


def ask_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | UsageError]:
    """Answer many problems, given as JSON lines; a bad line does not stop the others.

    Args:
        lines: `{"id", "text"}` or `{"id", "turns": [text, answer, …]}` in UTF-8 each.

    Yields:
        What `fairlead.router.ask_batch` gives, and in place of a line that cannot be read the
        error that names its number.
    """
    source = _Texts(lines)
    is_done = False
    while not is_done:
        # Empty lines are skipped but counted, so they keep the numbers right after a bad line.
        answers = ask_batch(chain(repeat("", source.n_read), source))
        try:
            yield from answers
            is_done = True
        except UsageError as exc:
            yield exc


class _Texts:
    """Lines as text; goes on after a line that is none."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.n_read = 0

    def __iter__(self) -> _Texts:
        return self

    def __next__(self) -> str:
        raw = next(self._lines)
        self.n_read += 1
        try:
            return raw.decode("utf-8-sig" if self.n_read == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise UsageError(
                f"line {self.n_read} is not UTF-8 text: byte {raw[exc.start]:#04x} at {exc.start}",
                hint="write one JSON object per line, in UTF-8",
            ) from exc
