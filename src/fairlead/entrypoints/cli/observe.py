"""`fairlead observe`: drift, alerts, service levels, and finding causes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

__all__ = ["app"]

app = typer.Typer(
    help="Watch a model in production and find causes: drift, alerts, slices, latency.",
    no_args_is_help=True,
)
debug_app = typer.Typer(help="Find the cause of wrong or slow answers.", no_args_is_help=True)
app.add_typer(debug_app, name="debug")

Data = Annotated[
    str | None,
    typer.Option("--data", help="Current rows: Parquet, CSV, JSONL or npz.", show_default=False),
]
Labels = Annotated[
    str | None,
    typer.Option(help="Column of the labels; the bundle's own by default.", show_default=False),
]
Since = Annotated[
    str | None,
    typer.Option(help="How far back the log is read: 15m, 1h, 7d.", show_default=False),
]
Version = Annotated[
    str | None, typer.Option(help="Only predictions of this version.", show_default=False)
]
Trust = Annotated[bool, typer.Option("--trust", help="Let code that came with the model run.")]
Alpha = Annotated[
    float, typer.Option(min=0.0001, max=0.5, help="Chance of a false alarm per window.")
]
MinEffect = Annotated[
    float, typer.Option(min=0, max=10, help="Smallest shift that matters, in standard deviations.")
]
MinRows = Annotated[int, typer.Option(min=10, help="Fewest rows that are judged.")]
MaxDrop = Annotated[
    float,
    typer.Option("--max-quality-drop", min=0, help="Loss of the primary score that is tolerated."),
]
ServiceOption = Annotated[str, typer.Option("--service", help="Name.", show_default=False)]
Availability = Annotated[
    float,
    typer.Option(
        "--slo-availability", min=0.0001, max=0.99999, help="Share answered without an error."
    ),
]
LatencyMs = Annotated[
    float,
    typer.Option("--slo-latency-ms", min=0.01, max=30_000, help="Latency that is promised."),
]
LatencyRatio = Annotated[
    float,
    typer.Option("--slo-latency-ratio", min=0.0001, max=0.99999, help="Share within it."),
]
PeriodDays = Annotated[
    float, typer.Option("--period-days", min=0.01, help="Period of the error budget, in days.")
]
MinErrors = Annotated[int, typer.Option(min=1, help="Fewest bad requests that alarm.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="Further setting, KEY=VALUE; repeatable.", show_default=False),
]


@app.command("monitor")
def monitor_command(
    target: Annotated[
        str, typer.Argument(help="Service with logged predictions, or bundle.", show_default=False)
    ],
    data: Data = None,
    labels: Labels = None,
    since: Since = None,
    version: Version = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle of the service, if it is not found.", show_default=False),
    ] = None,
    alpha: Alpha = 0.05,
    min_effect: MinEffect = 0.02,
    min_rows: MinRows = 30,
    max_quality_drop: MaxDrop = 0.02,
    set_: Setting = None,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Watch a service or rows of data: drift, skew, predictions and, with labels, quality."""
    settings = _settings(set_, alpha, min_effect, min_rows, max_quality_drop)
    is_bundle = Path(target).is_dir() or data is not None
    _monitor(
        json_,
        bundle=target if is_bundle else bundle,
        data=data,
        service=None if is_bundle else target,
        labels=labels,
        since=since,
        version=version,
        trust=trust,
        settings=settings,
    )


@app.command("drift")
def drift_command(
    bundle: Annotated[
        str | None, typer.Argument(help="Bundle with the reference.", show_default=False)
    ] = None,
    data: Data = None,
    service: Annotated[
        str | None, typer.Option(help="Watch its logged predictions.", show_default=False)
    ] = None,
    labels: Labels = None,
    since: Since = None,
    version: Version = None,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit with 1 when there is an alert.")
    ] = False,
    textfile: Annotated[
        Path | None,
        typer.Option(help="Gauges for node_exporter, FILE.prom.", show_default=False),
    ] = None,
    alpha: Alpha = 0.05,
    min_effect: MinEffect = 0.02,
    min_rows: MinRows = 30,
    max_quality_drop: MaxDrop = 0.02,
    set_: Setting = None,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Compare rows or logged predictions with the reference profile and name what shifted."""
    _monitor(
        json_,
        bundle=bundle,
        data=data,
        service=service,
        labels=labels,
        since=since,
        version=version,
        fail_on_drift=fail_on_drift,
        textfile=textfile,
        trust=trust,
        settings=_settings(set_, alpha, min_effect, min_rows, max_quality_drop),
    )


@app.command("alerts")
def alerts_command(
    service: ServiceOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="YAML file to write.", show_default=False)
    ],
    slo_availability: Availability = 0.999,
    slo_latency_ms: LatencyMs = 250.0,
    slo_latency_ratio: LatencyRatio = 0.99,
    period_days: PeriodDays = 30.0,
    min_errors: MinErrors = 5,
    json_: JsonFlag = False,
) -> None:
    """Write Prometheus rules: budget burn over several windows, health, drift."""
    from fairlead.api.service_levels import write_alert_rules

    settings = {
        "availability": slo_availability,
        "latency_ms": slo_latency_ms,
        "latency_ratio": slo_latency_ratio,
        "period_days": period_days,
        "min_errors": min_errors,
    }
    finish(write_alert_rules(service, out=out, settings=settings), as_json=json_)


@app.command("slo")
def slo_command(
    service: ServiceOption,
    since: Since = None,
    slo_availability: Availability = 0.999,
    slo_latency_ms: LatencyMs = 250.0,
    slo_latency_ratio: LatencyRatio = 0.99,
    period_days: PeriodDays = 30.0,
    min_errors: MinErrors = 5,
    json_: JsonFlag = False,
) -> None:
    """Count from the prediction log what is left of the error budgets."""
    from fairlead.api.service_levels import error_budgets

    settings = {
        "availability": slo_availability,
        "latency_ms": slo_latency_ms,
        "latency_ratio": slo_latency_ratio,
        "period_days": period_days,
        "min_errors": min_errors,
    }
    finish(error_budgets(service, since=since, settings=settings), as_json=json_)


@debug_app.command("slices")
def slices_command(
    bundle: Annotated[str, typer.Argument(help="Bundle that answers.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Labelled rows: Parquet, CSV, JSONL or npz.", show_default=False
        ),
    ],
    labels: Labels = None,
    max_level: Annotated[int, typer.Option(min=1, max=3, help="Most conditions per slice.")] = 2,
    min_support: Annotated[
        float, typer.Option(min=0.00001, max=0.99, help="Smallest slice, as a share of the rows.")
    ] = 0.01,
    min_lift: Annotated[
        float, typer.Option(min=1, help="Smallest error relative to all rows.")
    ] = 1.2,
    alpha: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Share of false slices accepted.")
    ] = 0.05,
    top: Annotated[int, typer.Option(min=1, max=100, help="Most slices that are shown.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into halves.")] = 0,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Find the subsets of labelled rows on which the model errs most."""
    settings = {
        "max_level": max_level,
        "min_support": min_support,
        "min_lift": min_lift,
        "alpha": alpha,
        "top": top,
        "seed": seed,
    }
    _diagnose(json_, bundle=bundle, data=data, labels=labels, trust=trust, settings=settings)


@debug_app.command("latency")
def latency_command(
    service: ServiceOption,
    url: Annotated[
        str | None,
        typer.Option(help="Server to send requests to, http://HOST:PORT.", show_default=False),
    ] = None,
    probe: Annotated[
        int,
        typer.Option(min=0, max=100_000, help="Requests to send; 0 reads the prediction log."),
    ] = 0,
    bundle: Annotated[
        str | None, typer.Option(help="Names the columns of --data.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Rows to send; zeros by default.", show_default=False),
    ] = None,
    labels: Labels = None,
    since: Since = None,
    goal_ms: Annotated[
        float | None,
        typer.Option("--goal-ms", min=0.001, help="Wanted 95th percentile.", show_default=False),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Tell where the time of a service's requests goes, and what to look at first."""
    _diagnose(
        json_,
        bundle=bundle,
        data=data,
        service=service,
        url=url,
        probe=probe,
        since=since,
        labels=labels,
        settings={"latency_goal_ms": goal_ms},
    )


def _settings(
    further: list[str] | None,
    alpha: float,
    min_effect: float,
    min_rows: int,
    max_quality_drop: float,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "alpha": alpha,
        "min_effect": min_effect,
        "min_rows": min_rows,
        "max_quality_drop": max_quality_drop,
    }
    for text in further or ():
        key, has_value, value = text.partition("=")
        if not has_value:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        settings[key.strip().replace("-", "_")] = value.strip()
    return settings


def _monitor(as_json: bool, **arguments: Any) -> None:  # noqa: ANN401 (handed on)
    from fairlead.api.context import Context
    from fairlead.api.observing import monitor

    with progress() as bars:
        outcome = monitor(context=Context.open(progress=bars), **arguments)
    finish(outcome, as_json=as_json)


def _diagnose(as_json: bool, **arguments: Any) -> None:  # noqa: ANN401 (handed on)
    from fairlead.api.context import Context
    from fairlead.api.observing import diagnose

    with progress() as bars:
        outcome = diagnose(context=Context.open(progress=bars), **arguments)
    finish(outcome, as_json=as_json)
