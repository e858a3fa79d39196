"""Real material to try Fairlead on: a classifier trained on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.dataset import Dataset
from fairlead.core.extras import requires
from fairlead.core.files import new_folder, refuse_taken, write_bytes
from fairlead.core.ports import Progress, SilentProgress

__all__ = ["PROBLEM", "DemoMaterial", "prepare_demo"]

PROBLEM = "I trained a model, now I need to put it in production"
"""The question the demonstration asks."""

_HIDDEN = (512, 256)
_DIMMED_ROWS = slice(4, 7)
_DIMMING = 0.45
_MODEL = "model.onnx"


@dataclass(frozen=True)
class DemoMaterial:
    """What the demonstration works on.

    Attributes:
        folder: Holds the files below.
        model: A digits classifier as ONNX, float32[?, 64] → label and ten probabilities.
        train: Rows the model was trained on, Parquet.
        holdout: Labelled rows it never saw, Parquet.
        shifted: The held-back rows as a scanner with a dimmed lower part would send them.
        accuracy: Share of the held-back rows the model gets right.
        n_train: Rows it was trained on.
    """

    folder: Path
    model: Path
    train: Path
    holdout: Path
    shifted: Path
    accuracy: float
    n_train: int


def prepare_demo(
    folder: Path, *, progress: Progress | None = None, replace: bool = False
) -> DemoMaterial:
    """Train a classifier on scikit-learn's digits and write it with its data.

    Args:
        folder: Directory to create.
        progress: Hears how far the work is.
        replace: Whether an existing directory may be replaced.

    Raises:
        ConflictError: The directory exists and may not be replaced.
        MissingExtraError: scikit-learn or skl2onnx is not installed.
    """
    talk = progress or SilentProgress()
    refuse_taken(folder, replace=replace, marker=_MODEL)
    talk.begin("training a digits classifier")
    images, labels = _digits()
    order = np.random.default_rng(7).permutation(len(labels))
    cut = round(len(labels) * 0.55)
    train, held = order[:cut], order[cut:]
    network = _train(images[train], labels[train])
    accuracy = float(np.mean(network.predict(images[held]) == labels[held]))
    with new_folder(
        folder, what="the demonstration's files", replace=replace, marker=_MODEL
    ) as staging:
        write_bytes(staging / _MODEL, _to_onnx(network))
        _save(staging / "train.parquet", images[train], labels[train])
        _save(staging / "holdout.parquet", images[held], labels[held])
        _save(staging / "shifted.parquet", _dim(images[held]), labels[held])
    return DemoMaterial(
        folder=folder,
        model=folder / _MODEL,
        train=folder / "train.parquet",
        holdout=folder / "holdout.parquet",
        shifted=folder / "shifted.parquet",
        accuracy=accuracy,
        n_train=len(train),
    )


def _digits() -> tuple[Any, Any]:
    with requires("sklearn", needed_by="the demonstration"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    return digits.data.astype(np.float32), digits.target.astype(np.int64)


def _train(images: Any, labels: Any) -> Any:  # noqa: ANN401 (untyped library)
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier(_HIDDEN, max_iter=80, early_stopping=True, random_state=7)
    return make_pipeline(StandardScaler(), network).fit(images, labels)


def _to_onnx(network: Any) -> bytes:  # noqa: ANN401 (untyped library)
    with requires("sklearn", needed_by="the demonstration"):
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    model = to_onnx(
        network,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
        target_opset=18,
    )
    return bytes(model.SerializeToString())


def _dim(images: Any) -> Any:  # noqa: ANN401 (plain array)
    pictures = images.reshape(-1, 8, 8).copy()
    pictures[:, _DIMMED_ROWS, :] = np.round(pictures[:, _DIMMED_ROWS, :] * _DIMMING)
    return pictures.reshape(-1, 64)


def _save(path: Path, images: Any, labels: Any) -> None:  # noqa: ANN401 (plain arrays)
    from fairlead.backends.datasets import save_dataset

    columns = {f"pixel_{i}": images[:, i] for i in range(images.shape[1])}
    save_dataset(Dataset({**columns, "label": labels}, source="digits"), path)
