"""`fairlead optimize`: smaller and faster models within a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fairlead.entrypoints.cli import optimize_auto
from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

__all__ = ["app"]

app = typer.Typer(
    help="Make a model smaller and faster: quantize, compress, tune.", no_args_is_help=True
)

app.command("auto")(optimize_auto.auto_command)

Model = Annotated[
    str, typer.Argument(help="Bundle, or a model, which is packed first.", show_default=False)
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Rows the model was not trained on: Parquet, CSV, JSONL or npz.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to create.", show_default=False)]
Labels = Annotated[
    str | None,
    typer.Option(help="Column of the labels; the bundle's own by default.", show_default=False),
]
Trust = Annotated[bool, typer.Option("--trust", help="Let code that came with the model run.")]
MaxDrop = Annotated[float, typer.Option(min=0, max=1, help="Quality that may be lost, as a ratio.")]
NeedProof = Annotated[
    bool,
    typer.Option("--need-proof", help="Refuse unless 95 % confidence bounds keep the budget too."),
]
Goal = Annotated[Literal["either", "speed", "size"], typer.Option(help="What must get better.")]
BatchRows = Annotated[
    int, typer.Option(min=1, max=4096, help="Rows per call when the speed is measured.")
]
MaxRows = Annotated[int, typer.Option(min=1, help="Most held-back rows that are judged.")]
TimeLimit = Annotated[
    float, typer.Option("--time-limit-s", min=0.1, max=600, help="Time for measuring speed, in s.")
]
Factory = Annotated[
    str | None,
    typer.Option(help="module:name of a trained torch module or of what returns one; runs it."),
]
TrainData = Annotated[
    str | None,
    typer.Option(help="module:name of batches, which runs it, or rows, to train or teach on."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where training runs.")]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        help="Bundle, or a model, which is packed first; left out with --model-factory.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of sampling and intervals.")]


@app.command("quantize")
def quantize_command(
    data: Data,
    out: Out,
    model: OptionalModel = None,
    labels: Labels = None,
    method: Annotated[
        Literal[
            "auto",
            "dynamic-int8",
            "static-int8",
            "smoothquant",
            "nncf-int8",
            "weight-int8",
            "weight-int4",
            "fp16",
            "bf16",
            "fp8",
        ],
        typer.Option(help="Method; auto measures them all."),
    ] = "auto",
    max_drop: MaxDrop = 0.01,
    metric: Annotated[
        str, typer.Option(help="auto, cosine, neighbours, or module:function (higher is better).")
    ] = "auto",
    need_proof: NeedProof = False,
    goal: Goal = "either",
    runtime: Annotated[
        Literal["any", "onnxruntime", "openvino"], typer.Option(help="What may run the result.")
    ] = "any",
    calibration: Annotated[
        str | None,
        typer.Option(help="Rows for the ranges of activations; a part of --data by default."),
    ] = None,
    calibration_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Most such rows.")] = 128,
    calibration_method: Annotated[
        Literal["minmax", "entropy", "percentile", "moving-average"],
        typer.Option(help="How the range of an activation is chosen."),
    ] = "minmax",
    percentile: Annotated[
        float, typer.Option(min=50, max=100, help="Values inside the range, in percent.")
    ] = 99.99,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale per weight, not per channel.")
    ] = False,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Zero in the middle of an activation's levels.")
    ] = False,
    operator: Annotated[
        list[str] | None,
        typer.Option(help="Operator to quantize statically (MatMul, Gemm, Conv …); repeatable."),
    ] = None,
    smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the outliers that smoothquant moves.")
    ] = 0.8,
    block_size: Annotated[
        int, typer.Option(help="Weights per scale of weight-int4 and -int8: 16, 32, 64 or 128.")
    ] = 32,
    rounding: Annotated[
        Literal["rtn", "hqq", "gptq"], typer.Option(help="How those weights are rounded.")
    ] = "rtn",
    whole: Annotated[
        bool, typer.Option("--whole", help="Leave no single layers in float to keep the budget.")
    ] = False,
    max_evaluations: Annotated[
        int, typer.Option(min=1, max=50, help="Most versions that are judged.")
    ] = 4,
    model_factory: Factory = None,
    train_data: TrainData = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Most epochs of quantization-aware training.")
    ] = 10,
    learning_rate: Annotated[
        float, typer.Option(min=1e-9, max=1, help="Largest step of that training.")
    ] = 5e-4,
    device: Device = "auto",
    batch_rows: BatchRows = 1,
    max_rows: MaxRows = 10_000,
    time_limit_s: TimeLimit = 10.0,
    seed: Seed = 0,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Store and compute in fewer bits if the held-back rows allow it; exit 1 when they do not.

    With --model-factory, --train-data and --trust a torch module is trained with the rounding
    that it will have (quantization-aware training).
    """
    settings = {
        "method": method,
        "max_drop": max_drop,
        "metric": metric,
        "allow_unproven": not need_proof,
        "goal": goal,
        "runtime": runtime,
        "calibration_rows": calibration_rows,
        "calibration_method": calibration_method,
        "percentile": percentile,
        "per_channel": not per_tensor,
        "symmetric": symmetric,
        "operators": operator or [],
        "smoothing": smoothing,
        "block_size": block_size,
        "rounding": rounding,
        "allow_mixed": not whole,
        "max_evaluations": max_evaluations,
        "batch_rows": batch_rows,
        "max_rows": max_rows,
        "time_limit_s": time_limit_s,
        "seed": seed,
    }
    sources = {
        "calibration": calibration,
        "model_factory": model_factory,
        "train_data": train_data,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "device": device,
    }
    _run("quantize", model, data, labels, out, trust, settings, json_, sources)


@app.command("compress")
def compress_command(
    data: Data,
    out: Out,
    model: OptionalModel = None,
    labels: Labels = None,
    method: Annotated[
        Literal[
            "auto",
            "low-rank",
            "tree-selection",
            "distillation",
            "structured-pruning",
            "sparsity",
            "layer-dropping",
            "head-dropping",
            "pipeline",
        ],
        typer.Option(help="Method; auto tries what fits the model, the cheapest first."),
    ] = "auto",
    model_factory: Factory = None,
    train_data: TrainData = None,
    student: Annotated[
        str | None, typer.Option(help="module:name of what returns an untrained torch student.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="module:name of a loss of outputs and targets.")
    ] = None,
    device: Device = "auto",
    max_drop: MaxDrop = 0.01,
    metric: Annotated[
        str, typer.Option(help="auto, cosine, neighbours, or module:function (higher is better).")
    ] = "auto",
    need_proof: NeedProof = False,
    goal: Goal = "either",
    max_ratio: Annotated[
        float,
        typer.Option(min=0.01, max=0.99, help="Share of channels, layers or heads to remove."),
    ] = 0.75,
    stages: Annotated[int, typer.Option(min=1, max=20, help="Cuts, each then trained.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs after a cut.")] = 60,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1, help="Largest step.")] = 2e-3,
    pattern: Annotated[
        Literal["2:4", "4:8", "unstructured"], typer.Option(help="Where sparsity puts zeros.")
    ] = "2:4",
    min_weights: Annotated[
        int, typer.Option(min=4, help="Smallest matrix that is factorised, in weights.")
    ] = 1024,
    max_evaluations: Annotated[
        int, typer.Option(min=1, max=50, help="Most candidates per method that are judged.")
    ] = 8,
    batch_rows: BatchRows = 1,
    max_rows: MaxRows = 10_000,
    time_limit_s: TimeLimit = 10.0,
    seed: Seed = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Further setting as key=value; repeatable."),
    ] = None,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Factorise, prune or distil a model if the held-back rows allow it; exit 1 when they do not.

    Methods that train need a torch module: --model-factory, --train-data and --trust, for they
    run your code.
    """
    settings = {
        "method": method,
        "max_drop": max_drop,
        "metric": metric,
        "allow_unproven": not need_proof,
        "goal": goal,
        "max_ratio": max_ratio,
        "stages": stages,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "pattern": pattern,
        "min_weights": min_weights,
        "max_evaluations": max_evaluations,
        "batch_rows": batch_rows,
        "max_rows": max_rows,
        "time_limit_s": time_limit_s,
        "seed": seed,
        **_settings(set_ or []),
    }
    sources = {
        "model_factory": model_factory,
        "train_data": train_data,
        "student": student,
        "loss": loss,
        "device": device,
    }
    _run("compress", model, data, labels, out, trust, settings, json_, sources)


@app.command("tune")
def tune_command(
    model: Model,
    data: Data,
    out: Out,
    labels: Labels = None,
    method: Annotated[
        Literal["successive-halving"], typer.Option(help="Method.")
    ] = "successive-halving",
    goal: Annotated[
        Literal["latency", "throughput"], typer.Option(help="What is optimised.")
    ] = "latency",
    latency_budget_ms: Annotated[
        float | None, typer.Option(min=0.0001, help="Longest p99 of a run, in ms.")
    ] = None,
    runtime: Annotated[
        Literal["any", "onnxruntime"], typer.Option(help="What may run the result.")
    ] = "any",
    max_threads: Annotated[
        int | None, typer.Option(min=1, help="Most threads; the usable CPUs by default.")
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="Largest batch that is tried, in rows.")
    ] = 64,
    service: Annotated[
        str | None, typer.Option(help="Running service to ask where its time goes.")
    ] = None,
    logged: Annotated[
        str | None, typer.Option(help="Service whose prediction log tells where its time goes.")
    ] = None,
    time_limit_s: TimeLimit = 20.0,
    seed: Seed = 0,
    trust: Trust = False,
    json_: JsonFlag = False,
) -> None:
    """Measure threads, graph level and batch size here; say if model or infrastructure is slow."""
    settings: dict[str, Any] = {
        "method": method,
        "goal": goal,
        "runtime": runtime,
        "latency_budget_ms": latency_budget_ms,
        "max_batch_size": max_batch_size,
        "time_limit_s": time_limit_s,
        "seed": seed,
    }
    if max_threads is not None:
        settings["max_threads"] = max_threads
    sources = {"service": service, "logged": logged}
    _run("tune", model, data, labels, out, trust, settings, json_, sources)


def _run(
    verb: str,
    model: str | None,
    data: str,
    labels: str | None,
    out: Path,
    trust: bool,
    settings: dict[str, Any],
    as_json: bool,
    sources: Mapping[str, str | int | float | None] | None = None,
) -> None:
    from fairlead.api import optimizing
    from fairlead.api.context import Context

    with progress() as bars:
        outcome = getattr(optimizing, verb)(
            model,
            data,
            labels=labels,
            out=out,
            trust=trust,
            settings=settings,
            context=Context.open(progress=bars),
            **(sources or {}),
        )
    finish(outcome, as_json=as_json)


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE, the value as JSON where it is some."""
    found: dict[str, Any] = {}
    for text in pairs:
        key, mark, value = text.partition("=")
        if not mark:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
