"""`fairlead serve`: start, stop and list servers, score files, roll out and scale."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.core.errors import UsageError
from fairlead.entrypoints.cli import (
    serve_batch,
    serve_container,
    serve_export,
    serve_keys,
    serve_models,
    serve_rollout,
    serve_scale,
)
from fairlead.entrypoints.cli.door import JsonFlag, finish, progress, show

if TYPE_CHECKING:
    from fairlead.core.endpoint import Endpoint

__all__ = ["app"]

app = typer.Typer(
    help="Serve a bundle, score files, roll candidates out, plan replicas.",
    no_args_is_help=True,
)

app.add_typer(serve_rollout.app, name="rollout")
app.add_typer(serve_scale.app, name="scale")
app.command("batch")(serve_batch.batch_command)
app.add_typer(serve_models.app, name="models")
app.add_typer(serve_keys.app, name="keys")
app.add_typer(serve_export.app, name="export")
app.command("container")(serve_container.container_command)

_OPTIONS = {"name", "host", "http_port", "candidate_weight"}

BundlePath = Annotated[Path, typer.Argument(help="Bundle to use.", show_default=False)]


class LogMode(StrEnum):
    """When a prediction counts as logged."""

    fast = "fast"
    durable = "durable"


Trust = Annotated[bool, typer.Option("--trust", help="Let code that came with the model run.")]


@app.command("start")
def start_command(
    bundles: Annotated[
        list[str],
        typer.Argument(
            help="Bundles to serve, as FOLDER or NAME=FOLDER; two of one name are two versions.",
            metavar="BUNDLE...",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the service and its first model; the bundle's by default."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 0,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for gRPC, 0 takes a free one; none without it."),
    ] = None,
    candidate: Annotated[
        Path | None, typer.Option(help="Second bundle behind the same name.")
    ] = None,
    candidate_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests the candidate gets.")
    ] = 0.1,
    memory_limit_mb: Annotated[
        int | None,
        typer.Option(min=16, help="Memory of a server process; models unused longest make room."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes that share the port and the CPUs."),
    ] = None,
    response_cache_mb: Annotated[
        float | None,
        typer.Option(min=0, help="Memory for answers to inputs that come again; off by default."),
    ] = None,
    security: Annotated[
        Path | None,
        typer.Option(help="TOML file with tokens, certificates, rights, limits and audit."),
    ] = None,
    log_mode: Annotated[
        LogMode | None,
        typer.Option(help="Whether answers wait until the disk holds the prediction; fast."),
    ] = None,
    log_rules: Annotated[
        Path | None,
        typer.Option(help="TOML file: the share of requests that is logged, columns to hide."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it in the background and check one inference.")
    ] = False,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Drain when standard input ends.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Further setting of serving; repeat it."),
    ] = None,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C; requests in flight are answered first."""
    settings = _settings(set_ or [])
    settings |= {"name": name, "host": host, "http_port": http_port}
    settings["candidate_weight"] = candidate_weight
    further: dict[str, Any] = {"workers": workers, "response_cache_mb": response_cache_mb}
    further |= {"security": None if security is None else str(security)}
    further |= {
        "log_mode": log_mode and log_mode.value,
        "log_rules": None if log_rules is None else str(log_rules),
    }
    further |= {"grpc_port": grpc_port, "memory_limit_mb": memory_limit_mb}
    settings |= {key: value for key, value in further.items() if value is not None}
    if detach:
        _start_detached(bundles, candidate, settings, trust=trust, as_json=json_)
        return
    from fairlead.api.serving import run_server

    run_server(
        *bundles,
        on_ready=_announce_json if json_ else _announce,
        candidate=candidate,
        trust=trust,
        until_stdin_closes=until_stdin_closes,
        settings=settings,
    )


def _start_detached(
    bundles: list[str],
    candidate: Path | None,
    settings: dict[str, Any],
    *,
    trust: bool,
    as_json: bool,
) -> None:
    from fairlead.api.context import Context
    from fairlead.api.serving import serve

    with progress() as bars:
        context = Context.open(progress=bars)
        outcome = serve(
            *bundles, candidate=candidate, trust=trust, settings=settings, context=context
        )
    finish(outcome, as_json=as_json)


def _announce(endpoint: Endpoint) -> None:
    # A plain line: the library of colours would stay in memory as long as the server runs.
    said = f"{endpoint.service} answers at {endpoint.url} (process {endpoint.pid}); Ctrl-C stops it"
    print(said, file=sys.stderr, flush=True)


def _announce_json(endpoint: Endpoint) -> None:
    show({"endpoint": endpoint.model_dump(mode="json")})


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a value is JSON where it can be, else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        if not mark or not key:
            raise UsageError(f"--set {pair!r} is no KEY=VALUE", hint="write --set metrics=false")
        if key in _OPTIONS:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(f"`{key}` has an option of its own", hint=f"use {option} {text}")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings


@app.command("stop")
def stop_command(
    name: Annotated[str, typer.Argument(help="Name of the service.", show_default=False)],
    timeout_s: Annotated[
        float, typer.Option(min=0.1, help="How long its drain may take, in seconds.")
    ] = 30.0,
    json_: JsonFlag = False,
) -> None:
    """Let a server drain, and wait until it has ended."""
    from fairlead.api.serving import stop_service

    finish(stop_service(name, timeout_s=timeout_s), as_json=json_)


@app.command("status")
def status_command(
    name: Annotated[str | None, typer.Argument(help="Name of one service.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the servers of this workspace, with the workers and models of each.

    Exit code 1 when the named one does not run.
    """
    from fairlead.api.service_status import service_status

    outcome = service_status(name)
    finish(outcome, as_json=json_)
    if name is not None and not all(record.is_alive for record in outcome.noun):
        raise typer.Exit(1)
