"""Smaller and faster bundles: quantize, compress, tune."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.api.context import Context
from fairlead.core.artifact import Artifact
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.errors import ConflictError, UntrustedError, UsageError
from fairlead.core.files import digest_bytes, user_path
from fairlead.core.report import Outcome

if TYPE_CHECKING:
    from fairlead.measure.verdict import RequestTimes

__all__ = ["compress", "quantize", "tune"]


def quantize(
    bundle: str | Path | None,
    data: str | Path,
    *,
    labels: str | None = None,
    out: str | Path,
    calibration: str | Path | None = None,
    model_factory: str | None = None,
    train_data: str | None = None,
    epochs: int = 10,
    learning_rate: float = 5e-4,
    device: str = "auto",
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Bundle]:
    """Store and compute a model in fewer bits if held-back rows allow it.

    With `model_factory` the torch module is trained with the rounding that it will have
    (quantization-aware training), for models that quantization alone breaks.

    Args:
        bundle: A bundle, or a model, which is packed first; None when `model_factory` makes it.
        data: Reference of rows the model was not trained on.
        labels: Column of the labels; the bundle's own label column when None and it is there.
        out: Directory to create.
        calibration: Reference of rows that ranges of activations are taken from; a part of `data`,
            which then judges nothing, when None.
        model_factory: `module:name` of a torch module, or of a function that returns a trained
            one.
        train_data: `module:name` of batches, or a reference of rows, to train it with.
        epochs: Most epochs of that training.
        learning_rate: Its largest step.
        device: `auto`, `cpu` or `cuda`.
        trust: Whether the user's code, or code that came with a model, may run.
        settings: Settings of `QuantizationConfig`.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        ConfigError: A setting is unknown or out of range.
        DataError: The rows do not fit the model, or the metric cannot be computed.
        ModelError: The model cannot be read.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    from fairlead.optimize import quantization

    config = quantization.QuantizationConfig.parse(settings or {})
    ctx = (context or Context.open()).ready_to_record()
    model = _model_or_factory(bundle, model_factory, train_data, trust)
    start, rows, target = _begin(model, data, labels, out, trust, ctx)
    if model_factory is not None and train_data is not None:
        from fairlead.api.training import quantize_aware

        return ctx.record(
            quantize_aware(
                start,
                rows,
                config,
                out=target,
                context=ctx,
                model_factory=model_factory,
                train_data=train_data,
                labels=labels,
                epochs=epochs,
                learning_rate=learning_rate,
                device=device,
            )
        )
    own = None if calibration is None else _rows(start, calibration, labels)
    return ctx.record(
        quantization.quantize(
            start, rows, config, out=target, calibration=own, progress=ctx.progress
        )
    )


def compress(
    bundle: str | Path | None,
    data: str | Path,
    *,
    labels: str | None = None,
    out: str | Path,
    model_factory: str | None = None,
    train_data: str | None = None,
    student: str | None = None,
    loss: str | None = None,
    device: str = "auto",
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Bundle]:
    """Make a model smaller by factorising, pruning or distilling it if held-back rows allow it.

    Args:
        bundle: A bundle, or a model, which is packed first; None when `model_factory` makes it.
        data: Reference of rows the model was not trained on.
        labels: Column of the labels; the bundle's own label column when None and it is there.
        out: Directory to create.
        model_factory: `module:name` of a torch module, or of a function that returns a trained
            one; methods that train need it.
        train_data: `module:name` of batches for training, or a reference of rows: for a torch
            module what it is trained on, else what a student learns from.
        student: `module:name` of a function that returns an untrained student.
        loss: `module:name` of a function of outputs and targets; by the task when None.
        device: `auto`, `cpu` or `cuda`.
        trust: Whether the user's code may run: that of the factory, the batches and the student.
        settings: Settings of `CompressionConfig`.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        UsageError: Neither or both of `bundle` and `model_factory` are given, or they do not fit.
        UntrustedError: Code would run, and `trust` is off.
        ConfigError, DataError, ModelError, ConflictError, WorkspaceError: As for `quantize`.
        MissingExtraError: torch or torch-pruning is needed and not installed.
    """
    from fairlead.api.training import begin_training, clear_checkpoints, quantizer
    from fairlead.optimize import compression

    config = compression.CompressionConfig.parse(settings or {})
    ctx = (context or Context.open()).ready_to_record()
    model = _model_or_factory(bundle, model_factory, train_data, trust)
    start, rows, target = _begin(model, data, labels, out, trust, ctx)
    transfer, training = None, None
    if model_factory is None and train_data is not None:
        transfer = _rows(start, train_data, labels)
    elif model_factory is not None and train_data is not None:
        training = begin_training(
            start,
            ctx.workspace.artifacts,
            config,
            model_factory=model_factory,
            train_data=train_data,
            labels=labels,
            student=student,
            loss=loss,
            device=device,
            seed=config.seed,
        )
    outcome = compression.compress(
        start,
        rows,
        config,
        out=target,
        transfer=transfer,
        training=training,
        quantize=quantizer(config, ctx.progress),
        progress=ctx.progress,
    )
    clear_checkpoints(training)
    return ctx.record(outcome)


def _model_or_factory(
    bundle: str | Path | None, model_factory: str | None, train_data: str | None, trust: bool
) -> str | Path:
    """Return the model's reference, or say what does not fit together."""
    if (bundle is None) == (model_factory is None):
        given = "both a model and --model-factory" if bundle is not None else "neither"
        raise UsageError(
            f"a model or --model-factory is needed, and {given} was given",
            hint="name a bundle or a model file, or a torch module by --model-factory module:name",
        )
    if model_factory is None:
        assert bundle is not None  # noqa: S101 (checked above)
        return bundle
    if train_data is None:
        raise UsageError(
            f"--model-factory {model_factory} needs --train-data to train with",
            hint="name batches as module:name, or a file of rows",
        )
    if not trust:
        raise UntrustedError(
            f"making and training {model_factory} runs your own code",
            hint="add --trust to let it run",
        )
    return model_factory


def tune(
    bundle: str | Path,
    data: str | Path,
    *,
    labels: str | None = None,
    out: str | Path,
    service: str | None = None,
    logged: str | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Bundle]:
    """Measure threads, graph level and batch size on this machine, and judge where time goes.

    Args:
        bundle: A bundle, or a model, which is packed first.
        data: Reference of typical rows.
        labels: Column of the labels, which the model does not take.
        out: Directory to create.
        service: Running service that is asked where its requests' time goes.
        logged: Service whose prediction log is read instead.
        trust: Whether code and pickles that came with the model may run.
        settings: Settings of `HardwareConfig`.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        UsageError: Both `service` and `logged` are given.
        NotFoundError: The service does not run.
        ConfigError, DataError, ModelError, ConflictError, WorkspaceError: As for `quantize`.
    """
    from fairlead.optimize import hardware

    if service is not None and logged is not None:
        raise UsageError(
            f"both --service {service} and --logged {logged} are given", hint="give one of them"
        )
    chosen = dict(settings or {})
    ctx = (context or Context.open()).ready_to_record()
    if ctx.settings.cpu_limit is not None:
        chosen.setdefault("max_threads", ctx.settings.cpu_limit)
    config = hardware.HardwareConfig.parse(chosen)
    start, rows, target = _begin(bundle, data, labels, out, trust, ctx)
    requests, source = _request_times(start, rows, service, logged, ctx)
    return ctx.record(
        hardware.tune(
            start,
            rows,
            config,
            out=target,
            progress=ctx.progress,
            requests=requests,
            requests_from=source,
            trust=trust,
        )
    )


def _request_times(
    bundle: Bundle, rows: Dataset, service: str | None, logged: str | None, context: Context
) -> tuple[RequestTimes | None, str]:
    from fairlead.backends.request_times import logged_times, probe_service

    if service is not None:
        columns = bundle.manifest.feature_columns
        feeds = bind(rows, bundle.signature, feature_columns=columns)
        return probe_service(context.workspace, service, feeds), f"sent to `{service}`"
    if logged is not None:
        return logged_times(context.workspace, logged), f"in the log of `{logged}`"
    return None, "in process, JSON by the standard library"


def _begin(
    model: str | Path,
    data: str | Path,
    labels: str | None,
    out: str | Path,
    trust: bool,
    context: Context,
) -> tuple[Bundle, Dataset, Path]:
    """Open the bundle, packing a model first, and read the rows; fail early on a taken place."""
    from fairlead.backends.datasets import load_dataset

    target = user_path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConflictError(
            f"{target} already exists", hint="choose another folder, or remove this one first"
        )
    artifact = Artifact.from_reference(str(model))
    if artifact.format == "bundle":
        bundle = Bundle.open(Path(model))
        return bundle, _rows(bundle, data, labels), target
    rows = load_dataset(data, labels=labels)
    return _packed(artifact, data, rows, labels, trust, context), rows, target


def _rows(bundle: Bundle, data: str | Path, labels: str | None) -> Dataset:
    """Read the rows; the column that the bundle knows as its label is taken as such."""
    from fairlead.backends.datasets import load_dataset

    rows = load_dataset(data, labels=labels)
    known = bundle.manifest.label_column
    if labels is None and known is not None and known in rows.columns:
        return load_dataset(data, labels=known)
    return rows


def _packed(
    artifact: Artifact,
    data: str | Path,
    rows: Dataset,
    labels: str | None,
    trust: bool,
    context: Context,
) -> Bundle:
    """Pack a model into the workspace, once for the same model and rows."""
    from fairlead.api.packing import pack

    key = digest_bytes(f"{artifact.digest} {rows.digest} {labels}".encode())
    folder = context.workspace.artifacts / f"packed-{key.removeprefix('sha256:')[:16]}"
    # An import string names code that may have changed since.
    if folder.is_dir() and artifact.path is not None:
        return Bundle.open(folder)
    context.progress.note(f"{artifact.reference} is no bundle yet, so it is packed first")
    return pack(
        artifact.reference,
        data=str(data),
        labels=labels,
        out=folder,
        trust=trust,
        replace=True,
        context=context,
    ).noun
