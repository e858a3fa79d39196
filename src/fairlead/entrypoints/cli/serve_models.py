"""`fairlead serve models`: what a running service serves, changed while it answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fairlead.entrypoints.cli.access_options import (
    ApiKeyFile,
    Ca,
    Cert,
    CertKey,
    TokenFile,
    shown,
)
from fairlead.entrypoints.cli.door import JsonFlag, finish

__all__ = ["app"]

app = typer.Typer(
    help="List, load, unload and switch the models of a running service.", no_args_is_help=True
)

Service = Annotated[
    str, typer.Argument(help="Name of a running service, or URL of a server.", show_default=False)
]
Model = Annotated[
    str | None, typer.Option(help="Name of the model; the only one when there is one.")
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="How long it may take, in seconds, warm-up included.")
]


@app.command("list")
def list_command(
    service: Service,
    timeout_s: Timeout = 30.0,
    api_key_file: ApiKeyFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
    key: CertKey = None,
    json_: JsonFlag = False,
) -> None:
    """List every version of every model, its state, and which one answers by default."""
    from fairlead.api.models import list_models

    options = shown(api_key_file, token_file, ca, cert, key)
    finish(list_models(service, timeout_s=timeout_s, context=_opened(options)), as_json=json_)


@app.command("load")
def load_command(
    service: Service,
    bundle: Annotated[
        str | None,
        typer.Argument(help="Bundle to add, as FOLDER or MODEL=FOLDER.", show_default=False),
    ] = None,
    model: Model = None,
    version: Annotated[
        str | None, typer.Option(help="Load only this version of what is known.")
    ] = None,
    default: Annotated[
        bool,
        typer.Option(
            "--default",
            help="Let it answer requests that name no version, also where another is newer.",
        ),
    ] = False,
    timeout_s: Timeout = 300.0,
    api_key_file: ApiKeyFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
    key: CertKey = None,
    json_: JsonFlag = False,
) -> None:
    """Load a bundle as a further version or model, or load again what was unloaded or changed.

    Returns once it is warm in every worker. What answered before goes on until then, and goes on
    if it fails. Requests that name no version go to the newest one, until `switch` or --default
    says otherwise.
    """
    from fairlead.api.models import load_model

    options = shown(api_key_file, token_file, ca, cert, key)
    outcome = load_model(
        service,
        bundle,
        model=model,
        version=version,
        is_default=default,
        timeout_s=timeout_s,
        context=_opened(options),
    )
    finish(outcome, as_json=json_)


@app.command("unload")
def unload_command(
    service: Service,
    model: Model = None,
    version: Annotated[str | None, typer.Option(help="Unload only this version.")] = None,
    timeout_s: Timeout = 60.0,
    api_key_file: ApiKeyFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
    key: CertKey = None,
    json_: JsonFlag = False,
) -> None:
    """Unload a model or one version; requests that it has are answered first."""
    from fairlead.api.models import unload_model

    options = shown(api_key_file, token_file, ca, cert, key)
    outcome = unload_model(
        service, model=model, version=version, timeout_s=timeout_s, context=_opened(options)
    )
    finish(outcome, as_json=json_)


@app.command("switch")
def switch_command(
    service: Service,
    version: Annotated[
        str, typer.Argument(help="Version that shall answer by default.", show_default=False)
    ],
    model: Model = None,
    timeout_s: Timeout = 300.0,
    api_key_file: ApiKeyFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
    key: CertKey = None,
    json_: JsonFlag = False,
) -> None:
    """Let another version answer the requests that name none; no request fails meanwhile."""
    from fairlead.api.models import switch_model

    options = shown(api_key_file, token_file, ca, cert, key)
    outcome = switch_model(
        service, version, model=model, timeout_s=timeout_s, context=_opened(options)
    )
    finish(outcome, as_json=json_)


def _opened(options: dict[str, Any]) -> Any:  # noqa: ANN401 (a Context, imported when needed)
    from fairlead.api.context import Context

    return Context.open(settings=options)
