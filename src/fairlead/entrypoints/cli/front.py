"""`fairlead plan` and `run`: from a problem to steps, and through them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.core.errors import PlanError
from fairlead.entrypoints.cli.ask import Answers, Given, converse
from fairlead.entrypoints.cli.door import JsonFlag, finish, progress, show, talk

__all__ = ["plan_command", "run_command"]

Text = Annotated[str, typer.Argument(help="The problem in your own words.", show_default=False)]


def plan_command(
    text: Text,
    model: Annotated[str, typer.Option(help="Model: a path or an import string.")],
    data: Annotated[str, typer.Option(help="Held-back rows: Parquet, CSV, JSONL or npz.")],
    labels: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    answer: Answers = None,
    stream: Annotated[
        str | None, typer.Option(help="Rows the monitoring step sends and watches.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model and the service.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Plan to write.")] = Path(
        "plan.toml"
    ),
    features: Annotated[
        str | None,
        typer.Option(help="Columns of the model's input in order, separated by commas."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code and pickles that came with the model run.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Bind a route to steps with settings, gates and expected artefacts."""
    from fairlead.api import plan, write_plan

    answers = list(answer or [])
    converse(text, answers, Given(model=model), is_silent=json_)
    made = plan(
        text,
        model=model,
        data=data,
        labels=labels,
        answers=answers,
        stream=stream,
        name=name,
        features=tuple(part.strip() for part in (features or "").split(",") if part.strip()),
        trust=trust,
    )
    write_plan(made, output)
    if json_:
        show({"plan": made.model_dump(mode="json"), "path": str(output)})
        return
    console = talk()
    console.print(f"{output}: {len(made.steps)} steps", markup=False)
    for number, step in enumerate(made.steps, start=1):
        console.print(f"  {number}. {step.id} ({step.uses}): {step.why}", markup=False)
    console.print(f"run it with: fairlead run {output}", markup=False)


def run_command(
    path: Annotated[Path, typer.Argument(help="Plan to run.", show_default=False)],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again, even when a run is finished or open.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Run a plan; after a crash, run the same command again to go on where it stopped."""
    from fairlead.api import Context, follow, read_plan
    from fairlead.api.following import where_it_stopped
    from fairlead.entrypoints.render.run_report import write_reports

    made = read_plan(path)
    if not made.steps:
        raise PlanError(f"{path} has no steps", hint="make it again with `fairlead plan`")
    with progress() as bars:
        context = Context.open(progress=bars)
        try:
            outcome = follow(made, fresh=fresh, context=context)
        except KeyboardInterrupt:
            talk().print(where_it_stopped(made, context), markup=False, soft_wrap=True)
            raise
    finish(write_reports(outcome, context.workspace), as_json=json_)
