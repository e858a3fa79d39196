"""The models of the benchmark of `optimize auto`: real data, trained here, one command each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlead.backends.datasets import save_dataset
from fairlead.core.dataset import Dataset

__all__ = ["Case", "cases"]


@dataclass(frozen=True)
class Case:
    """A model, the rows it is optimised on, and rows that no search sees.

    Attributes:
        name: Name of the model.
        model: File, or code, of the model.
        given: File with the rows for the search.
        fresh: File with rows nobody chose on.
        labels: Column of the labels; None without.
        max_drop: Budget, as a ratio.
        batch_rows: Rows per call that count: 1 asks for latency, more for throughput.
    """

    name: str
    model: str
    given: Path
    fresh: Path
    labels: str | None
    max_drop: float
    batch_rows: int

    @property
    def target(self) -> str:
        """What the command asks for."""
        return "latency" if self.batch_rows == 1 else "throughput"


def cases(wanted: list[str], folder: Path, minilm: Path | None) -> Iterator[Case]:
    """Make the cases that are wanted, one after the other."""
    makers = {
        "minilm-1x32": lambda: _minilm(folder, minilm, 32, 1),
        "minilm-16x128": lambda: _minilm(folder, minilm, 128, 16),
        "cnn": lambda: _cnn(folder, 1),
        "cnn-batch": lambda: _cnn(folder, 32),
        "mlp": lambda: _sklearn(folder, "mlp"),
        "forest": lambda: _sklearn(folder, "forest"),
        "boosting": lambda: _sklearn(folder, "boosting"),
        "boosting-regressor": lambda: _sklearn(folder, "boosting-regressor"),
    }
    for name in wanted or list(makers):
        if not (name.startswith("minilm") and minilm is None):
            yield makers[name]()


def _minilm(folder: Path, place: Path | None, length: int, batch: int) -> Case:
    assert place is not None
    rows = dict(np.load(place / f"rows-{length}.npz"))
    given, fresh = folder / f"minilm-{length}.npz", folder / f"minilm-{length}-fresh.npz"
    half = len(next(iter(rows.values()))) * 5 // 8
    np.savez(given, **{k: v[:half] for k, v in rows.items()})
    np.savez(fresh, **{k: v[half:] for k, v in rows.items()})
    model = str(place / "minilm-traced.onnx")
    return Case(f"minilm {batch}x{length}", model, given, fresh, None, 0.005, batch)


def _cnn(folder: Path, batch: int) -> Case:
    os.environ.setdefault("DIGITS_CNN", str(folder / "digits-cnn.pt"))
    sys.path.insert(0, str(Path(__file__).parent))
    import digits_cnn
    import torch

    torch.set_num_threads(1)
    net, model = digits_cnn.trained(), folder / "cnn.onnx"
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), str(model), input_names=["image"],
        output_names=["score"], dynamic_axes={"image": {0: "n"}, "score": {0: "n"}},
        opset_version=17, dynamo=False,
    )  # fmt: skip
    rows = digits_cnn.held_back()
    half = len(rows["label"]) * 2 // 3
    given, fresh = folder / "cnn.npz", folder / "cnn-fresh.npz"
    np.savez(given, **{k: v[:half] for k, v in rows.items()})
    np.savez(fresh, **{k: v[half:] for k, v in rows.items()})
    return Case(f"digits cnn, {batch} rows", str(model), given, fresh, "label", 0.01, batch)


def _sklearn(folder: Path, kind: str) -> Case:
    import skops.io
    from sklearn import datasets, ensemble, neural_network, pipeline, preprocessing

    if kind == "boosting-regressor":
        features, truth = datasets.load_diabetes(return_X_y=True)
        model = ensemble.GradientBoostingRegressor(random_state=0)
    else:
        features, truth = datasets.load_digits(return_X_y=True)
        model = {
            "mlp": lambda: pipeline.make_pipeline(
                preprocessing.StandardScaler(),
                neural_network.MLPClassifier((512, 512), max_iter=60, random_state=0),
            ),
            "forest": lambda: ensemble.RandomForestClassifier(200, random_state=0),
            "boosting": lambda: ensemble.GradientBoostingClassifier(random_state=0),
        }[kind]()
    order = np.random.default_rng(0).permutation(len(features))
    features, truth = features[order].astype(np.float32), truth[order]
    ends = [len(features) // 2, len(features) * 5 // 6]
    model.fit(features[: ends[0]], truth[: ends[0]])
    file = folder / f"{kind}.skops"
    skops.io.dump(model, file)
    parts = {"": slice(ends[0], ends[1]), "-fresh": slice(ends[1], None)}
    for suffix, part in parts.items():
        columns = {f"f{i}": features[part, i] for i in range(features.shape[1])}
        save_dataset(Dataset(columns, truth[part], "label"), folder / f"{kind}{suffix}.parquet")
    given, fresh = folder / f"{kind}.parquet", folder / f"{kind}-fresh.parquet"
    return Case(kind, str(file), given, fresh, "label", 0.01, 1)
