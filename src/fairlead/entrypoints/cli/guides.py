"""`fairlead guides`: the skill guides, for people and for their agents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fairlead.core.files import user_path
from fairlead.entrypoints.cli.door import JsonFlag, show, talk

__all__ = ["app"]

app = typer.Typer(
    help="Read the guides, one per skill, or install them beside an agent.", no_args_is_help=True
)


@app.command("list")
def list_command(json_: JsonFlag = False) -> None:
    """List the guides and what each is for."""
    from fairlead.api.guides import list_guides

    guides = list_guides()
    if json_:
        show({"guides": [guide.model_dump(exclude={"text"}) for guide in guides]})
        return
    from rich.text import Text

    from fairlead.entrypoints.render.terminal import open_console, print_hanging

    console = open_console()
    width = max(len(guide.id) for guide in guides)
    for guide in guides:
        summary = f"{guide.description.split('. ')[0].rstrip('.')}."
        if console.is_terminal:
            print_hanging(console, f"{guide.id:<{width}}  ", Text(summary))
        else:
            typer.echo(f"{guide.id:<{width}}  {summary}")


@app.command("show")
def show_command(
    guide: Annotated[str, typer.Argument(help="Id of the guide.", show_default=False)],
    json_: JsonFlag = False,
) -> None:
    """Print one guide as Markdown."""
    from fairlead.api.guides import read_guide

    found = read_guide(guide)
    if json_:
        show(found.model_dump())
        return
    sys.stdout.write(found.text)


@app.command("install")
def install_command(
    folder: Annotated[
        Path, typer.Argument(help="Folder of skills, for example `~/.agent/skills`.")
    ],
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Id of a guide; repeat for more.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite files that were changed by hand.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Copy the guides into a folder of skills; run it again after an update."""
    from fairlead.api.guides import install_guides

    done = install_guides(user_path(folder), only=only or (), replace=replace)
    if json_:
        show({"guides": [item.model_dump() for item in done]})
        return
    for item in done:
        talk().print(f"{item.status}: {item.path}", markup=False)
