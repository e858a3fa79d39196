"""`fairlead serve container` and `fairlead serve export`: a bundle on its way to other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

__all__ = ["app"]

app = typer.Typer(help="Write a bundle in a form that runs elsewhere.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to create.", show_default=False)]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what was written before.")]
BundlePath = Annotated[Path, typer.Argument(help="Bundle to use.", show_default=False)]


@app.command("edge")
def edge_command(
    bundle: BundlePath,
    out: Out,
    as_zip: Annotated[bool, typer.Option("--zip", help="Write a zip file beside it too.")] = False,
    replace: Replace = False,
    json_: JsonFlag = False,
) -> None:
    """Write a folder that runs with ONNX Runtime and numpy alone, and compare its answers.

    Examples: fairlead serve export edge bundle -o edge
    """
    from fairlead.api.context import Context
    from fairlead.api.edge import export_edge

    with progress() as bars:
        context = Context.open(progress=bars)
        outcome = export_edge(bundle, out=out, as_zip=as_zip, replace=replace, context=context)
    finish(outcome, as_json=json_)
