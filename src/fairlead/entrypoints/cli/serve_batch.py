"""`fairlead serve batch`: predict every row of files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

__all__ = ["batch_command"]


class _Engine(StrEnum):
    """Where the model runs."""

    threads = "threads"
    processes = "processes"
    ray = "ray"


def batch_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle to use.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Argument(
            help="Parquet, CSV or JSON-lines files, folders or patterns; - reads standard input.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .parquet, .csv or .jsonl.", show_default=False
        ),
    ],
    keep: Annotated[
        list[str] | None, typer.Option(help="Column of the input to carry over; repeat for more.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Column of predictions to write; repeat for more, none writes all."),
    ] = None,
    chunk_rows: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Rows read, scored and kept at once.")
    ] = 16_384,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Chunks at the same time; one per core.")
    ] = None,
    engine: Annotated[
        _Engine | None, typer.Option(help="Where the model runs; chosen by its kind.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let code that came with the model run.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Predict every row of files; run it again after a crash and it goes on where it was.

    Rows that cannot be predicted go to OUT.quarantine.parquet, with the reason.
    """
    from fairlead.api.context import Context
    from fairlead.api.serving import score_batch, spare_memory

    spare_memory(bundle)
    with progress("rows") as bars:
        outcome = score_batch(
            bundle,
            data,
            out=output,
            keep=keep or (),
            columns=columns or (),
            chunk_rows=chunk_rows,
            workers=workers,
            engine=None if engine is None else engine.value,
            trust=trust,
            stdin=typer.get_binary_stream("stdin") if data == ["-"] else None,
            context=Context.open(progress=bars),
        )
    finish(outcome, as_json=json_)
