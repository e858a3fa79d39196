"""`fairlead router`: how good it is, and what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress, show

if TYPE_CHECKING:
    from fairlead.api.context import Context
    from fairlead.api.labelled_problems import LabelledProblem

__all__ = ["app"]

app = typer.Typer(
    help="Score the router, and see what it was asked on this machine.", no_args_is_help=True
)


@app.command("evaluate")
def evaluate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help='Labelled problems: lines {"text", "answer"}.', show_default=False),
    ] = None,
    shipped: Annotated[
        bool, typer.Option("--shipped", help="Score the problems that ship, besides the files.")
    ] = False,
    corrected: Annotated[
        bool, typer.Option("--corrected", help="Score the corrections, besides the files.")
    ] = False,
    at_least: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 when fewer answers are right in full."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Score the router; without files on the problems that ship and on your corrections."""
    from fairlead.api.context import Context
    from fairlead.api.router_scores import score_router

    everything = not (files or shipped or corrected)
    with progress() as bars:
        context = Context.open(progress=bars)
        problems = _problems(
            files or [], context, shipped=shipped or everything, corrected=corrected or everything
        )
        outcome = score_router(problems, progress=bars)
    exact = outcome.noun.share(lambda verdict: verdict.is_exact)
    if at_least is not None and exact < at_least:
        refused = outcome.report.model_copy(update={"verdict": "refused"})
        outcome = type(outcome)(outcome.noun, refused)
    finish(outcome, as_json=json_)


def _problems(
    files: list[Path], context: Context, *, shipped: bool, corrected: bool
) -> list[LabelledProblem]:
    from fairlead.api.labelled_problems import (
        corrected_problems,
        problems_of_file,
        shipped_problems,
    )

    found = [problem for file in files for problem in problems_of_file(file)]
    found += shipped_problems() if shipped else ()
    return [*found, *(corrected_problems(context) if corrected else ())]


@app.command("history")
def history(
    limit: Annotated[int, typer.Option(min=1, help="Most questions to show.")] = 20,
    json_: JsonFlag = False,
) -> None:
    """Show what the router was asked here, the newest first, with your corrections."""
    from fairlead.api.context import Context
    from fairlead.api.feedback import recall

    asked = recall(Context.open())[::-1][:limit]
    if json_:
        show({"questions": [item.model_dump(mode="json") for item in asked]})
        return
    for item in asked:
        text = " ".join(item.text.split())
        shown = text if len(text) <= 70 else f"{text[:67]}..."
        fixed = f"  (should be {item.correction})" if item.correction else ""
        typer.echo(f"{item.at:%Y-%m-%d %H:%M}  {shown}  → {item.answered}{fixed}")
