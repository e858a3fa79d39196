"""`fairlead serve scale`: load tests and capacity plans."""

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
from fairlead.entrypoints.cli.door import JsonFlag, finish, progress
from fairlead.entrypoints.cli.serve_container import manifests_command

__all__ = ["app"]

app = typer.Typer(
    help="Find what a server can take, and how many replicas an SLO needs.",
    no_args_is_help=True,
)

app.command("manifests")(manifests_command)

Model = Annotated[str | None, typer.Option(help="Name of the model behind a URL.")]
Labels = Annotated[
    str | None, typer.Option(help="Column of --data with the labels, which are not sent.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Let code that came with the model run.")]


@app.command("test")
def press_command(
    target: Annotated[
        str,
        typer.Argument(help="URL on this machine, running service, or bundle.", show_default=False),
    ],
    data: Annotated[str, typer.Option(help="Rows to send.", show_default=False)],
    rate: Annotated[float, typer.Option(help="Requests per second of the first step.")] = 50.0,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Raise the rate until it is too much.")
    ] = True,
    step_seconds: Annotated[float, typer.Option(help="Seconds that each rate is held.")] = 2.0,
    max_steps: Annotated[int, typer.Option(help="Most rates that are tried.")] = 12,
    max_seconds: Annotated[float, typer.Option(help="Seconds until no rate is added.")] = 60.0,
    max_p99_ms: Annotated[
        float | None, typer.Option(help="p99 latency in ms that is too slow.")
    ] = None,
    connections: Annotated[int, typer.Option(help="Most requests under way at once.")] = 64,
    labels: Labels = None,
    model: Model = None,
    seed: Annotated[int, typer.Option(help="Seed of the arrival times.")] = 0,
    trust: Trust = False,
    api_key_file: ApiKeyFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
    key: CertKey = None,
    json_: JsonFlag = False,
) -> None:
    """Press a server with an open loop of random arrivals, and find its limit.

    Exit code 1 when it does not even keep up with the lowest rate.
    """
    from fairlead.api.context import Context
    from fairlead.api.scaling import load_test

    settings = {
        "rate_rps": rate,
        "search": search,
        "step_seconds": step_seconds,
        "max_steps": max_steps,
        "max_seconds": max_seconds,
        "max_p99_ms": max_p99_ms,
        "connections": connections,
        "seed": seed,
    }
    access = shown(api_key_file, token_file, ca, cert, key)
    with progress() as bars:
        outcome = load_test(
            target,
            data,
            labels=labels,
            model=model,
            trust=trust,
            settings=settings,
            context=Context.open(progress=bars, settings=access),
        )
    finish(outcome, as_json=json_)


@app.command("plan")
def plan_command(
    target: Annotated[
        str | None,
        typer.Argument(help="URL on this machine, running service, or bundle.", show_default=False),
    ] = None,
    target_rps: Annotated[float, typer.Option(help="Requests per second at peak.")] = 100.0,
    slo_p99_ms: Annotated[float, typer.Option(help="p99 latency in ms to stay under.")] = 100.0,
    data: Annotated[str | None, typer.Option(help="Rows to send to TARGET.")] = None,
    service_times: Annotated[
        str | None,
        typer.Option(help="JSON or table of service times in ms, instead of TARGET."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="central-queue, least-outstanding, power-of-two-choices or round-robin."),
    ] = "least-outstanding",
    gateways: Annotated[int, typer.Option(help="Load balancers side by side.")] = 1,
    slots: Annotated[int, typer.Option(help="Requests a replica works on at once.")] = 1,
    capacity_rps: Annotated[
        float | None, typer.Option(help="Measured saturation of one replica.")
    ] = None,
    spare: Annotated[int, typer.Option(help="Replicas that may fail.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="Most replicas considered.")] = 512,
    requests: Annotated[
        int, typer.Option(min=30, max=1_000_000, help="Requests measured on TARGET.")
    ] = 2000,
    labels: Labels = None,
    model: Model = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    trust: Trust = False,
    api_key_file: ApiKeyFile = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
    key: CertKey = None,
    json_: JsonFlag = False,
) -> None:
    """Find the least number of replicas for a rate and a latency, by simulation.

    Exit code 1 when no number of replicas is enough.
    """
    from fairlead.api.context import Context
    from fairlead.api.scaling import scale

    settings: dict[str, Any] = {
        "target_rps": target_rps,
        "slo_p99_ms": slo_p99_ms,
        "policy": policy,
        "gateways": gateways,
        "slots_per_replica": slots,
        "capacity_rps": capacity_rps,
        "spare_replicas": spare,
        "max_replicas": max_replicas,
        "seed": seed,
    }
    access = shown(api_key_file, token_file, ca, cert, key)
    with progress() as bars:
        outcome = scale(
            target,
            data,
            labels=labels,
            model=model,
            service_times=service_times,
            requests=requests,
            trust=trust,
            settings=settings,
            context=Context.open(progress=bars, settings=access),
        )
    finish(outcome, as_json=json_)
