"""`fairlead optimize auto`: the best version of a model, with one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

if TYPE_CHECKING:
    from fairlead.core.bundle import Bundle
    from fairlead.core.report import Outcome

__all__ = ["auto_command"]


def auto_command(
    model: Annotated[
        str,
        typer.Argument(help="Bundle, or a model, which is packed first.", show_default=False),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Rows the model was not trained on: Parquet, CSV, JSONL or npz.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory to create.", show_default=False)
    ],
    labels: Annotated[
        str | None,
        typer.Option(help="Column of the labels; the bundle's own by default.", show_default=False),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="auto, cosine, neighbours, or module:function (higher is better).")
    ] = "auto",
    max_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Quality that may be lost, as a ratio.")
    ] = 0.01,
    target: Annotated[
        Literal["latency", "throughput", "size", "memory"],
        typer.Option(help="What must get better."),
    ] = "latency",
    device: Annotated[
        Literal["cpu", "cuda", "edge"],
        typer.Option(help="Where it will run; edge is one thread, without OpenVINO."),
    ] = "cpu",
    need_proof: Annotated[
        bool,
        typer.Option(
            "--need-proof", help="Refuse unless 95 % confidence bounds keep the budget too."
        ),
    ] = False,
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows that are used.")] = 10_000,
    time_limit_s: Annotated[
        float,
        typer.Option(
            "--time-limit-s", min=0.1, max=600, help="Time for one comparison of speed, in s."
        ),
    ] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and intervals.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code that came with the model run.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Profile a model, try what may help, and write the best version that keeps the budget.

    A report as a page lies in OUT.search afterwards; a run that was stopped goes on from there.
    """
    from fairlead.api.context import Context
    from fairlead.api.optimizing_auto import optimize_auto

    settings = {
        "metric": metric,
        "max_drop": max_drop,
        "target": target,
        "device": device,
        "allow_unproven": not need_proof,
        "max_rows": max_rows,
        "time_limit_s": time_limit_s,
        "seed": seed,
    }
    with progress() as bars:
        outcome = optimize_auto(
            model,
            data,
            labels=labels,
            out=out,
            trust=trust,
            settings=settings,
            context=Context.open(progress=bars),
        )
        outcome = _with_page(outcome)
    finish(outcome, as_json=json_)


def _with_page(outcome: Outcome[Bundle]) -> Outcome[Bundle]:
    """Write the report as a page into the folder of the search."""
    from fairlead.core.files import write_json, write_text
    from fairlead.core.report import Outcome
    from fairlead.entrypoints.render.page import render_page

    report = outcome.report
    folder = Path(report.files["search"])
    page, document = folder / "report.html", folder / "report.json"
    files = {**report.files, "report": str(page), "report as JSON": str(document)}
    report = report.model_copy(update={"files": files})
    write_text(page, render_page(report.title, report.summary, [report]))
    write_json(document, report.model_dump(mode="json"))
    return Outcome(outcome.noun, report, outcome.evidence)
