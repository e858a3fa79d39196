"""What compression needs beside its bundle: the user's torch code, checkpoints, a quantizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.files import digest_bytes
from fairlead.core.ports import Progress
from fairlead.core.report import Outcome

if TYPE_CHECKING:
    from fairlead.backends.torch_material import TorchMaterial
    from fairlead.optimize.compression import CompressionConfig

__all__ = ["begin_training", "clear_checkpoints", "quantizer"]


def begin_training(
    bundle: Bundle,
    artifacts: Path,
    config: CompressionConfig,
    *,
    model_factory: str,
    train_data: str,
    labels: str | None,
    student: str | None,
    loss: str | None,
    device: str,
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
        seed=config.seed,
        checkpoints=artifacts / f"training-{key}",
    )


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
