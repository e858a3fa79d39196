"""Asks the router, with what the workspace already knows."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.api.context import Context
from fairlead.core.artifact import Artifact
from fairlead.core.bundle import Bundle
from fairlead.core.evidence import Evidence
from fairlead.router import Question, Redirect, Route
from fairlead.router import ask as ask_router

__all__ = ["ask"]


def ask(
    text: str,
    *,
    answers: Sequence[str] = (),
    evidence: Sequence[Evidence] = (),
    model: str | None = None,
    context: Context | None = None,
) -> Route | Question | Redirect:
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
