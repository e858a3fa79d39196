"""`fairlead demo`: real material to try things on, and the whole way through on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, progress, show, talk

if TYPE_CHECKING:
    from fairlead.core.plan import PlanRun
    from fairlead.core.report import Outcome

__all__ = ["app"]

app = typer.Typer(
    help="Try Fairlead on a classifier trained on scikit-learn's digits.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="Folder to create.")]


@app.command("prepare")
def prepare(
    folder: Folder = Path("demo"),
    replace: Annotated[bool, typer.Option("--replace", help="Replace the folder.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Train the classifier and write it with its rows, ready for every other command."""
    from fairlead.api.demo import prepare_demo

    with progress() as bars:
        made = prepare_demo(folder, progress=bars, replace=replace)
    files = {name: str(getattr(made, name)) for name in ("model", "train", "holdout", "shifted")}
    if json_:
        show({**files, "accuracy": made.accuracy, "n_train": made.n_train})
        return
    console = talk()
    console.print(f"trained on {made.n_train} rows, accuracy {made.accuracy:.4f} on held-back rows")
    for name, path in files.items():
        console.print(f"  {name}: {path}", markup=False)


@app.command("run")
def run(
    folder: Folder = Path("demo"),
    json_: JsonFlag = False,
) -> None:
    """Train, ask, plan and run: from a trained model to one that is served and watched."""
    from fairlead.api import Context, ask, follow, plan, write_plan
    from fairlead.api.demo import PROBLEM, prepare_demo
    from fairlead.entrypoints.render.answers import print_answer
    from fairlead.entrypoints.render.run_report import write_reports

    with progress() as bars:
        context = Context.open(home=folder / ".fairlead", progress=bars)
        material = prepare_demo(folder / "material", progress=bars, replace=True)
        bars.note(
            f"trained a digits classifier on {material.n_train} rows, "
            f"accuracy {material.accuracy:.4f} on {material.holdout.name}"
        )
        bars.note(f'\n$ fairlead ask "{PROBLEM}" --answer cloud')
        print_answer(ask(PROBLEM, answers=("cloud",), context=context), to_stderr=True)
        made = plan(
            PROBLEM,
            model=str(material.model),
            data=str(material.holdout),
            labels="label",
            answers=("cloud",),
            stream=str(material.shifted),
            name="digits",
            context=context,
        )
        path = folder / "plan.toml"
        write_plan(made, path)
        bars.note(f"\n$ fairlead run {path}")
        outcome = follow(made, fresh=True, context=context)
        written = write_reports(outcome, context.workspace)
    _summarise(written, as_json=json_)


def _summarise(outcome: Outcome[PlanRun], *, as_json: bool) -> None:
    from fairlead.entrypoints.cli.door import finish

    finish(outcome, as_json=as_json)
