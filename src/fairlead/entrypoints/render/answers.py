"""Answers of the router as text."""

from __future__ import annotations

from rich.text import Text

from fairlead.catalog import find_card
from fairlead.entrypoints.render.terminal import open_console
from fairlead.router import Question, Redirect, Route

__all__ = ["print_answer"]


def print_answer(answer: Route | Question | Redirect, *, to_stderr: bool = False) -> None:
    """Print a route, a question or a redirect."""
    console = open_console(to_stderr=to_stderr)
    for line in _head(answer):
        console.print(line)
    for ground in _grounds(answer):
        console.print(Text(ground, style="dim"))


def _head(answer: Route | Question | Redirect) -> list[Text]:
    if isinstance(answer, Question):
        lines = [Text(answer.question or "", style="bold")]
        for option in answer.options:
            lead = option.leads_to
            where = ", ".join(lead.skills) or lead.redirect_to or f"asks {lead.ambiguity}"
            lines.append(Text(f"  {option.number}. {option.label}  [{option.id}] → {where}"))
        return lines
    if isinstance(answer, Redirect):
        lines = [Text(f"This one belongs to {answer.redirect_to}.", style="bold")]
        lines.append(Text(f"  {answer.reason}"))
        return [*lines, Text(f"  Come back {answer.come_back}")] if answer.come_back else lines
    lines = [Text("Route", style="bold")]
    for number, step in enumerate(answer.skills, start=1):
        lines.append(Text(f"  {number}. {step.skill}: {step.reason}"))
        lines.append(Text(f"     {find_card(step.skill).command}", style="cyan"))
    return lines


def _grounds(answer: Route | Question | Redirect) -> list[str]:
    lines = [f"because: {answer.reason} (rule {answer.rule})"]
    if answer.spans:
        lines.append("decided by: " + ", ".join(f"“{span.text}”" for span in answer.spans))
    for reading in answer.evidence_used:
        lines.append(
            f"measured instead of asking: {reading.metric} = {reading.value:.4g} {reading.unit}"
            f" → {reading.option}"
        )
    if answer.also_consider:
        lines.append("worth a look later: " + ", ".join(answer.also_consider))
    if answer.also_consult:
        lines.append(
            "also consult: " + "; ".join(f"{n.id} ({n.reason})" for n in answer.also_consult)
        )
    lines += [f"to settle it: {item.command} ({item.tells})" for item in answer.measurements]
    runner_up = f", runner-up {answer.runner_up.answer}" if answer.runner_up else ""
    lines.append(f"confidence {answer.confidence:.2f}{runner_up}")
    return lines
