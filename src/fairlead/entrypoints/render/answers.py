"""Answers of the router as text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from fairlead.catalog import find_card
from fairlead.entrypoints.render.terminal import open_console, print_hanging
from fairlead.router import Question, Redirect, Route

__all__ = ["print_answer"]

_Line = tuple[str, Text]
"""What stands before a text, and the text; its further lines are indented as far."""


def print_answer(
    answer: Route | Question | Redirect, *, to_stderr: bool = False, offers_measuring: bool = False
) -> None:
    """Print a route, a question or a redirect.

    Args:
        answer: The answer.
        to_stderr: Print on stderr.
        offers_measuring: Tell how a question can be measured instead of asked, where it can.
    """
    console = open_console(to_stderr=to_stderr)
    for before, text in (*_head(answer), *_grounds(answer)):
        print_hanging(console, before, text)
    if offers_measuring and isinstance(answer, Question) and _is_measurable(answer):
        offer = "add --measure with --model and --data, or with --url"
        print_hanging(console, "to have it measured: ", Text(offer))


def _is_measurable(question: Question) -> bool:
    from fairlead.api.evidence_taking import is_measurable

    return question.ambiguity is not None and is_measurable(question.ambiguity)


def _head(answer: Route | Question | Redirect) -> Iterator[_Line]:
    if isinstance(answer, Question):
        yield "", Text(answer.question or "", style="bold")
        for option in answer.options:
            lead = option.leads_to
            where = ", ".join(lead.skills) or lead.redirect_to or f"asks {lead.ambiguity}"
            yield f"  {option.number}. ", Text(f"{option.label}  [{option.id}] → {where}")
    elif isinstance(answer, Redirect):
        yield "", Text(f"This one belongs to {answer.redirect_to}.", style="bold")
        yield "  ", Text(_sentence(answer.reason))
        if answer.come_back:
            yield "  ", Text(_sentence(answer.come_back))
    else:
        yield "", Text("Route", style="bold")
        for number, step in enumerate(answer.skills, start=1):
            before = f"  {number}. "
            yield before, Text(f"{step.skill}: {step.reason}")
            yield " " * len(before), Text(find_card(step.skill).command, style="cyan")


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _grounds(answer: Route | Question | Redirect) -> Iterator[_Line]:
    for before, words in _reasons(answer):
        yield f"{before}: ", Text(words, style="dim")
    runner_up = f", runner-up {answer.runner_up.answer}" if answer.runner_up else ""
    yield "", Text(f"confidence {answer.confidence:.2f}{runner_up}", style="dim")


def _reasons(answer: Route | Question | Redirect) -> Iterator[tuple[str, str]]:
    """Yield what each ground is called, and the ground."""
    is_question = isinstance(answer, Question)
    if is_question:
        yield "because", answer.reason
    spoken = ", ".join(dict.fromkeys(f"“{span.text}”" for span in answer.spans))
    yield "decided by", f"{spoken} (rule {answer.rule})" if spoken else f"rule {answer.rule}"
    for reading in answer.evidence_used:
        value = f"{reading.value:.4g} {reading.unit}"
        yield "measured instead of asking", f"{reading.metric} = {value} → {reading.option}"
    if answer.also_consider:
        yield "worth a look later", ", ".join(answer.also_consider)
    if answer.also_consult:
        yield "also consult", "; ".join(f"{n.id} ({n.reason})" for n in answer.also_consult)
    for item in answer.measurements:
        yield "to settle it" if is_question else "to confirm it", f"{item.command} ({item.tells})"
