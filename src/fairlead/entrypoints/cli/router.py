"""`fairlead router`: how good it is, and what it was asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, present, progress, show, talk

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
        bool, typer.Option("--shipped", help="Score all problems that ship, besides the files.")
    ] = False,
    held_back: Annotated[
        bool,
        typer.Option("--held-back", help="Score the shipped problems that nothing was fitted on."),
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
    """Score the router; without options on what it has never seen and on your corrections."""
    from fairlead.api.context import Context
    from fairlead.api.labelled_problems import (
        corrected_problems,
        problems_of_file,
        shipped_problems,
    )
    from fairlead.api.router_lessons import local_weights
    from fairlead.api.router_scores import score_router

    nothing = not (files or shipped or held_back or corrected)
    with progress() as bars:
        context = Context.open(progress=bars)
        problems = [problem for file in files or () for problem in problems_of_file(file)]
        if shipped or held_back or nothing:
            problems += (p for p in shipped_problems() if shipped or p.is_held_back)
        if corrected or nothing:
            problems += corrected_problems(context)
        outcome = score_router(problems, weights=local_weights(context), progress=bars)
    exact = outcome.noun.share(lambda verdict: verdict.is_exact)
    if at_least is not None and exact < at_least:
        refused = outcome.report.model_copy(update={"verdict": "refused"})
        outcome = type(outcome)(outcome.noun, refused)
    finish(outcome, as_json=json_)


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
    if not asked:
        talk().print("nothing has been asked in this workspace", markup=False)
    for item in asked:
        text = " ".join(item.text.split())
        shown = text if len(text) <= 70 else f"{text[:67]}..."
        fixed = f"  (should be {item.correction})" if item.correction else ""
        typer.echo(f"{item.at:%Y-%m-%d %H:%M}  {shown}  → {item.answered}{fixed}")


@app.command("train")
def train(
    write: Annotated[
        bool, typer.Option("--write", help="Answer with it from now on; else only show it.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Answer as the router was shipped.")
    ] = False,
    max_loss: Annotated[
        float,
        typer.Option(min=0, max=1, help="Tolerated loss of right answers on held-back problems."),
    ] = 0.005,
    json_: JsonFlag = False,
) -> None:
    """Fold your corrections in, for this workspace only; shows what changes before it does."""
    from fairlead.api.context import Context
    from fairlead.api.router_learning import learn
    from fairlead.api.router_lessons import forget_lessons, write_lessons

    if forget:
        was_there = forget_lessons(Context.open())
        talk().print("forgotten" if was_there else "nothing had been learnt")
        return
    with progress() as bars:
        context = Context.open(progress=bars)
        outcome = learn(context, max_loss=max_loss)
    present(outcome.report, as_json=json_)
    if outcome.is_refused:
        raise typer.Exit(1)
    if outcome.report.verdict == "kept":
        talk().print("there is nothing to write: no correction changes an answer")
        return
    if not write and not json_ and sys.stdin.isatty() and sys.stderr.isatty():
        write = typer.confirm("answer with this from now on?", err=True)
    if write:
        path = write_lessons(outcome.noun.weights, context)
        talk().print(f"written: {path}", markup=False, soft_wrap=True)
    elif not json_:
        talk().print("nothing is written yet; add --write to answer with it from now on")
