"""`fairlead serve keys`: API keys of the workspace."""

from __future__ import annotations

from typing import Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish

__all__ = ["app"]

app = typer.Typer(
    help="Make, list and revoke the API keys that servers of this workspace ask for.",
    no_args_is_help=True,
)


@app.command("add")
def add_command(
    name: Annotated[str, typer.Argument(help="Who gets the key.", show_default=False)],
    model: Annotated[
        list[str] | None, typer.Option(help="Model that it may ask; repeat it; all by default.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Let it administer servers.")] = False,
    rate_rps: Annotated[
        float | None, typer.Option(help="Most requests per second on average, over all workers.")
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(
            help="Requests that may come at once, of its own rate or of the server's [limits]; "
            "one second's worth by default."
        ),
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Days until it ends.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Make a key and show it once; from the first one on, servers ask for credentials."""
    from fairlead.api.access import add_key

    outcome = add_key(
        name,
        models=model or (),
        is_admin=admin,
        rate_rps=rate_rps,
        burst=burst,
        expires_in_days=expires_in_days,
    )
    finish(outcome, as_json=json_)


@app.command("list")
def list_command(json_: JsonFlag = False) -> None:
    """List the keys, ended ones included; the keys themselves are kept nowhere."""
    from fairlead.api.access import list_keys

    finish(list_keys(), as_json=json_)


@app.command("revoke")
def revoke_command(
    key: Annotated[str, typer.Argument(help="Name or id of the key.", show_default=False)],
    json_: JsonFlag = False,
) -> None:
    """Revoke the keys of a name or an id; running servers refuse them within a second."""
    from fairlead.api.access import revoke_key

    finish(revoke_key(key), as_json=json_)
