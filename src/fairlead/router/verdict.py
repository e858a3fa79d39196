"""What a rule decides, before it is put into words."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.router.answers import AnswerKind, NeighbourId, QuestionId, SkillId

__all__ = ["Verdict", "clarify", "redirect", "route"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and what it rests on."""

    kind: AnswerKind
    rule: str
    because: tuple[str, ...]
    """The concepts that decided."""
    skills: tuple[SkillId, ...] = ()
    redirect_to: NeighbourId | None = None
    question: QuestionId | None = None
    consult: tuple[NeighbourId, ...] = ()
    also: tuple[SkillId, ...] = ()


def route(
    rule: str,
    skills: tuple[SkillId, ...],
    because: tuple[str, ...],
    *,
    consult: tuple[NeighbourId, ...] = (),
    also: tuple[SkillId, ...] = (),
) -> Verdict:
    """Decide for skills, in this order."""
    return Verdict("route", rule, because, skills=skills, consult=consult, also=also)


def clarify(question: QuestionId, because: tuple[str, ...], *, rule: str | None = None) -> Verdict:
    """Decide that one thing must be known first."""
    return Verdict("clarify", rule or f"ask-{question}", because, question=question)


def redirect(neighbour: NeighbourId, rule: str, because: tuple[str, ...]) -> Verdict:
    """Decide that a neighbour takes over."""
    return Verdict("redirect", rule, because, redirect_to=neighbour)
