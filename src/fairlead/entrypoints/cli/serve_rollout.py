"""`fairlead serve rollout`: canary, status, promote, abort."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.core.errors import UsageError
from fairlead.entrypoints.cli.door import JsonFlag, finish, present, progress

if TYPE_CHECKING:
    from fairlead.core.decision import Decision
    from fairlead.core.report import Outcome

__all__ = ["app"]

app = typer.Typer(
    help="Give a candidate a growing share of the traffic, and decide on the evidence.",
    no_args_is_help=True,
)

Service = Annotated[
    str | None, typer.Option(help="Name of the service; the newest rollout by default.")
]
NamedService = Annotated[str, typer.Option(help="Name of the service.", show_default=False)]


@app.command("canary")
def canary_command(
    baseline: Annotated[
        Path | None, typer.Argument(help="Bundle in use.", show_default=False)
    ] = None,
    candidate: Annotated[
        Path | None, typer.Argument(help="Bundle that shall replace it.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(help="Rows to replay against both.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column of --data with the labels.")] = None,
    service: Annotated[
        str | None, typer.Option(help="Watch the live traffic of this running service instead.")
    ] = None,
    label_file: Annotated[
        str | None, typer.Option(help="With --service: file with the columns id and label.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Chance of rolling back a good candidate. [default: 0.05]")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Shares of the traffic. [default: 0.1,0.25,0.5]")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Failures, as a multiple of the baseline's. [default: 1.5]")
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(help="Requests until it holds. [default: 20000]")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Seconds until it holds. [default: 1800]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Replayed requests per second; as fast as answered else.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the replay. [default: 0]")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Further setting of the rollout; repeat."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code that came with the models run.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Roll a candidate out: exit code 0 when it was promoted, 1 when rolled back or on hold.

    With two bundles and --data, both are served and the rows are replayed. With --service, the
    candidate of a running service is watched on its live traffic.
    """
    settings = _settings(set_ or [])
    given = {
        "alpha": alpha,
        "steps": None if steps is None else _shares(steps),
        "margin": margin,
        "max_requests": max_requests,
        "max_seconds": max_seconds,
        "rate_rps": rate,
        "seed": seed,
    }
    settings |= {key: value for key, value in given.items() if value is not None}
    _end_on_sigterm()
    if service is not None:
        _refuse_with_service(baseline=baseline, candidate=candidate, data=data, labels=labels)
        finish(_watch(service, label_file, settings), as_json=json_)
        return
    if baseline is None or candidate is None or data is None or label_file is not None:
        raise UsageError(
            "a canary needs two bundles and --data, or --service",
            hint="fairlead serve rollout canary BASELINE CANDIDATE --data D [--labels COL]",
        )
    outcome = _replay(baseline, candidate, data, labels, settings, trust=trust)
    finish(outcome, as_json=json_)


def _watch(service: str, label_file: str | None, settings: dict[str, Any]) -> Outcome[Decision]:
    from fairlead.api.context import Context
    from fairlead.api.rollout import watch_rollout

    with progress() as bars:
        return watch_rollout(
            service,
            label_file=label_file,
            settings=settings,
            context=Context.open(progress=bars),
        )


def _replay(
    baseline: Path,
    candidate: Path,
    data: str,
    labels: str | None,
    settings: dict[str, Any],
    *,
    trust: bool,
) -> Outcome[Decision]:
    from fairlead.api.context import Context
    from fairlead.api.rollout import roll_out

    with progress() as bars:
        return roll_out(
            baseline,
            candidate,
            data,
            labels=labels,
            trust=trust,
            settings=settings,
            context=Context.open(progress=bars),
        )


@app.command("status")
def status_command(service: Service = None, json_: JsonFlag = False) -> None:
    """Show a rollout: its shares, its evidence and its decision."""
    from fairlead.api.rollout import rollout_status

    present(rollout_status(service).report, as_json=json_)


@app.command("promote")
def promote_command(service: NamedService, json_: JsonFlag = False) -> None:
    """Give the candidate of a running service all traffic, whatever the evidence says."""
    from fairlead.api.rollout import promote_rollout

    finish(promote_rollout(service), as_json=json_)


@app.command("abort")
def abort_command(service: NamedService, json_: JsonFlag = False) -> None:
    """Give the baseline all traffic and end the rollout."""
    from fairlead.api.rollout import abort_rollout

    finish(abort_rollout(service), as_json=json_)


def _refuse_with_service(**given: object) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise UsageError(
            f"--service watches live traffic, so {', '.join(wrong)} cannot be given with it",
            hint="leave out --service to serve two bundles and replay data",
        )


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--steps {text!r} is not a list of numbers", hint="write for example 0.05,0.25,0.5"
        ) from None


def _settings(pairs: list[str]) -> dict[str, Any]:
    import json

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key:
            raise UsageError(f"--set {pair!r} has no value", hint="write --set KEY=VALUE")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def _end_on_sigterm() -> None:
    """Let SIGTERM unwind like Ctrl-C, so that the baseline gets its traffic back."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
