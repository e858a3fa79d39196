"""`fairlead pack`: a model in any format becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

__all__ = ["pack_command"]


def pack_command(
    model: Annotated[
        str,
        typer.Argument(
            help="ONNX, skops, XGBoost, LightGBM or torch-export file, MLflow model directory, "
            "bundle, or module:attribute or file.py:attribute: an estimator, a torch module, a "
            "class with predict(self, inputs), or a function of one argument; or ensemble.toml."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Rows held back from training: .parquet, .csv, .jsonl, .npz, sklearn:NAME or "
            "module:function.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create.")],
    labels: Annotated[
        str | None, typer.Option("--labels", help="Column with the truth; gives scores.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; default: its file name.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            help="Columns of the model's input in order, separated by commas; for models that do "
            "not name them.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="File or folder that Python code loads; repeat for more."),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess",
            metavar="FILE.py:NAME",
            help="Function that turns the columns of a request into those of the model.",
        ),
    ] = None,
    postprocess: Annotated[
        str | None,
        typer.Option(
            "--postprocess",
            metavar="FILE.py:NAME",
            help="Function that turns the model's outputs into the answer.",
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Let code and pickles that came with the model run."),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an existing directory.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn a trained model into a bundle: measured, described and ready to be served.

    Examples: fairlead pack model.onnx --data holdout.parquet --labels label -o bundle
    """
    from fairlead.api.context import Context
    from fairlead.api.packing import pack

    names = tuple(part.strip() for part in features.split(",") if part.strip()) if features else ()
    with progress() as bars:
        outcome = pack(
            model,
            data=data,
            labels=labels,
            out=out,
            name=name,
            features=names,
            include=include or (),
            preprocess=preprocess,
            postprocess=postprocess,
            trust=trust,
            replace=replace,
            context=Context.open(progress=bars),
        )
    finish(outcome, as_json=as_json)
