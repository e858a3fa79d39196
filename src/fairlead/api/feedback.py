"""Memory of what the router was asked, what it said, and what it should have said.

    <workspace>/router/questions.jsonl    one JSON object per line, appended, never rewritten
        {"event": "asked", "id": …, "text": …, "kind": "route", "skills": […], …}
        {"event": "corrected", "id": …, "kind": "route", "skills": […], …}

Nothing leaves the machine. `FAIRLEAD_RECORD=0` turns it off.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from fairlead.api.context import Context
from fairlead.core.errors import NotFoundError, UsageError
from fairlead.core.files import translated_os_errors
from fairlead.core.values import Value
from fairlead.router import Answer
from fairlead.router.answers import (
    NEIGHBOURS,
    QUESTIONS,
    SKILLS,
    AnswerKind,
    NeighbourId,
    QuestionId,
    SkillId,
)

__all__ = ["Asked", "Label", "correct", "parse_label", "recall", "remember"]

_FORMS: Final = "SKILL[,SKILL…], redirect:NEIGHBOUR or clarify:QUESTION"


class Label(Value):
    """An answer by its content alone: what it was, or what it should have been."""

    kind: AnswerKind
    """Kind of the answer."""
    skills: tuple[SkillId, ...] = ()
    """Skills in the order of work, for a route."""
    redirect_to: NeighbourId | None = None
    """The neighbour, for a redirect."""
    ambiguity: QuestionId | None = None
    """The question, for a clarification."""

    @classmethod
    def of(cls, answer: Answer) -> Label:
        """Return the content of an answer of the router."""
        return cls(
            kind=answer.kind,
            skills=answer.skill_ids,
            redirect_to=answer.redirect_to,
            ambiguity=answer.ambiguity,
        )

    def __str__(self) -> str:
        if self.redirect_to:
            return f"redirect:{self.redirect_to}"
        return f"clarify:{self.ambiguity}" if self.ambiguity else ",".join(self.skills)


class Asked(Value):
    """One question to the router as it is remembered."""

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Unique id of the record."""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it was asked."""
    text: str
    """The user's words."""
    answers: tuple[str, ...] = ()
    """Answers given to the router's questions, as option ids."""
    answered: Label
    """What the router said."""
    confidence: float
    """How sure it was."""
    rule: str
    """The rule that fired."""
    evidence: tuple[str, ...] = ()
    """Measurements that were used instead of asking, by name."""
    correction: Label | None = None
    """What it should have said, where the user told."""


def remember(answer: Answer, context: Context) -> Asked | None:
    """Append an answer to the memory of the workspace.

    Returns:
        The record, or None when recording is turned off.

    Raises:
        WorkspaceError: The workspace cannot be written.
    """
    if not context.settings.record:
        return None
    asked = Asked(
        text=answer.asked,
        answers=answer.answers,
        answered=Label.of(answer),
        confidence=answer.confidence,
        rule=answer.rule,
        evidence=tuple(reading.metric for reading in answer.evidence_used),
    )
    _append({"event": "asked", **asked.model_dump(mode="json", exclude={"correction"})}, context)
    return asked


def correct(label: Label, context: Context, *, asked: Asked | None = None) -> Asked:
    """Attach what the answer should have been to a remembered question.

    Args:
        label: The right answer.
        context: Holds the memory.
        asked: The question; the last one when None.

    Returns:
        The question with its correction.

    Raises:
        NotFoundError: No question is remembered.
        WorkspaceError: The workspace cannot be written.
    """
    last = asked or next(iter(reversed(recall(context))), None)
    if last is None:
        raise NotFoundError(
            f"no question is remembered in {context.workspace.root}",
            hint='ask first with `fairlead ask "…"`, without FAIRLEAD_RECORD=0',
        )
    document = {"event": "corrected", "id": last.id, "at": datetime.now(UTC).isoformat()}
    _append({**document, "correction": label.model_dump(mode="json")}, context)
    return last.model_copy(update={"correction": label})


def recall(context: Context) -> list[Asked]:
    """Return every remembered question with its newest correction, the oldest first."""
    found: dict[str, Asked] = {}
    for entry in _entries(_path(context)):
        try:
            if entry.get("event") == "asked":
                asked = Asked.model_validate({k: v for k, v in entry.items() if k != "event"})
                found[asked.id] = asked
            elif entry.get("id") in found:
                label = Label.model_validate(entry.get("correction"))
                found[entry["id"]] = found[entry["id"]].model_copy(update={"correction": label})
        except ValidationError:
            # Written by another version, with ids that this one does not know.
            continue
    return list(found.values())


def parse_label(text: str) -> Label:
    """Read a correction as people write it.

    Raises:
        UsageError: It names no skill, neighbour or question, or a skill twice.

    Examples:
        >>> parse_label("redirect:llm-specialist").redirect_to
        'llm-specialist'
        >>> parse_label("model-serving-patterns, deployment-strategies").kind
        'route'
    """
    form, _, name = text.strip().partition(":")
    if form == "redirect" and name:
        return Label(kind="redirect", redirect_to=_one_of(name, NEIGHBOURS, "neighbour"))
    if form == "clarify" and name:
        return Label(kind="clarify", ambiguity=_one_of(name, QUESTIONS, "question"))
    names = [part.strip() for part in text.split(",") if part.strip()]
    skills = tuple(_one_of(part, SKILLS, "skill") for part in names)
    if not skills or len(set(skills)) < len(skills):
        raise UsageError(
            f"`{text}` names {'a skill twice' if skills else 'nothing'}", hint=f"write {_FORMS}"
        )
    return Label(kind="route", skills=skills)


def _one_of(
    name: str, known: tuple[Any, ...], what: Literal["neighbour", "question", "skill"]
) -> Any:  # noqa: ANN401 (an id out of a Literal)
    if name.strip() in known:
        return name.strip()
    raise UsageError(
        f"there is no {what} `{name.strip()}`", hint=f"the {what}s are {', '.join(known)}"
    )


def _path(context: Context) -> Path:
    return context.workspace.root / "router" / "questions.jsonl"


def _append(document: dict[str, Any], context: Context) -> None:
    path = _path(context)
    with translated_os_errors(path, "the memory of the router"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            # A line that a full disk cut short must not swallow the next one.
            is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            line = ("\n" if is_torn else "") + json.dumps(document) + "\n"
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
