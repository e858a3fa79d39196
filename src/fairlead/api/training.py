"""What compression needs beside its bundle: the user's torch code, checkpoints, a quantizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConfigError
from fairlead.core.files import digest_bytes
from fairlead.core.ports import Progress
from fairlead.core.report import Outcome
from fairlead.core.values import Config

if TYPE_CHECKING:
    from fairlead.api.context import Context
    from fairlead.backends.torch_material import TorchMaterial
    from fairlead.optimize.compression import CompressionConfig
    from fairlead.optimize.quantization import QuantizationConfig

__all__ = ["begin_training", "clear_checkpoints", "quantize_aware", "quantizer"]


def begin_training(
    bundle: Bundle,
    artifacts: Path,
    config: Config,
    *,
    model_factory: str,
    train_data: str,
    labels: str | None,
    student: str | None = None,
    loss: str | None = None,
    device: str,
    seed: int,
) -> TorchMaterial:
    """Load the module and its data; the same call again goes on from its checkpoints.

    Raises:
        NotFoundError, ModelError, DataError, UsageError, MissingExtraError: See `torch_material`.
    """
    from fairlead.backends.torch_material import torch_material

    # The model file of the bundle and not the bundle: this one holds the time it was packed.
    parts = (
        bundle.manifest.name,
        digest_bytes(bundle.model_path.read_bytes()),
        train_data,
        student,
        loss,
        config.model_dump_json(),
    )
    key = digest_bytes(repr(parts).encode()).removeprefix("sha256:")[:16]
    return torch_material(
        bundle,
        model_factory=model_factory,
        train_data=train_data,
        labels=labels,
        student=student,
        loss=loss,
        device=device,
        seed=seed,
        checkpoints=artifacts / f"training-{key}",
    )


def quantize_aware(
    bundle: Bundle,
    rows: Dataset,
    config: QuantizationConfig,
    *,
    out: Path,
    context: Context,
    model_factory: str,
    train_data: str,
    labels: str | None,
    epochs: int,
    learning_rate: float,
    device: str,
) -> Outcome[Bundle]:
    """Train a torch module with the rounding of 8 bits; see `train_quantized`.

    Raises:
        ConfigError: `epochs` or `learning_rate` is out of range.
        NotFoundError, ModelError, DataError, UsageError, MissingExtraError: See `torch_material`.
    """
    from fairlead.backends.torch_training import TrainingPlan
    from fairlead.optimize.quantization.methods.quantization_aware import train_quantized

    if epochs < 1 or not 0 < learning_rate <= 1:
        raise ConfigError(
            f"epochs is {epochs} and learning_rate {learning_rate:g}",
            hint="give at least one epoch, and a learning rate above 0 and up to 1",
        )
    training = begin_training(
        bundle,
        context.workspace.artifacts,
        config,
        model_factory=model_factory,
        train_data=train_data,
        labels=labels,
        device=device,
        seed=config.seed,
    )
    plan = TrainingPlan(epochs, max(epochs // 2, 1), learning_rate, seed=config.seed)
    outcome = train_quantized(
        bundle, rows, config, out=out, training=training, plan=plan, progress=context.progress
    )
    clear_checkpoints(training)
    return outcome


def clear_checkpoints(training: TorchMaterial | None) -> None:
    """Remove the checkpoints of training that came to its end."""
    if training is not None and training.checkpoints is not None:
        shutil.rmtree(training.checkpoints, ignore_errors=True)


def quantizer(
    config: CompressionConfig, progress: Progress
) -> Callable[[Bundle, Dataset, float, Path], Outcome[Bundle]]:
    """Return what quantizes within a pipeline, with the settings that both steps share."""

    def quantize(bundle: Bundle, rows: Dataset, budget: float, out: Path) -> Outcome[Bundle]:
        from fairlead.optimize import quantization

        settings = quantization.QuantizationConfig(
            max_drop=budget,
            metric=config.metric,
            allow_unproven=config.allow_unproven,
            goal=config.goal,
            batch_rows=config.batch_rows,
            time_limit_s=config.time_limit_s,
            seed=config.seed,
        )
        return quantization.quantize(bundle, rows, settings, out=out, progress=progress)

    return quantize
