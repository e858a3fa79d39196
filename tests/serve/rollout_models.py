"""Bundles that go wrong in ways a rollout must see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.datasets import save_dataset
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.profile import build_profile
from tests.serve.inference_models import FEATURES, pack_model, save_model, value


def rows_file(path: Path, n_rows: int = 500) -> Path:
    """Rows with the labels of `inference_models.classifier_bundle`, some of them wrong."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n_rows, 4)).astype(np.float32)
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, -1]])
    kind = np.argmax(x @ weights + rng.normal(size=(n_rows, 3)) * 0.1, axis=1)
    return save_dataset(Dataset(dict(zip(FEATURES, x.T, strict=True)), kind, "kind"), path)


def failing_bundle(target: Path) -> Bundle:
    """The same classes, but it fails where the first feature is positive (half of the rows)."""
    kind = TensorProto.FLOAT
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, -1]], np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "W"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["x", "zero"], ["first"], axis=1),
        helper.make_node("Ceil", ["first"], ["up"]),
        helper.make_node("Cast", ["up"], ["index"], to=TensorProto.INT64),
        helper.make_node("Clip", ["index", "zero", "far"], ["place"]),
        # A place beyond the table makes the runtime fail.
        helper.make_node("Gather", ["table", "place"], ["nothing"], axis=0),
        helper.make_node("Add", ["best", "nothing"], ["label"]),
    ]
    model = save_model(
        nodes,
        [value("x", kind, ["n", 4])],
        [value("label", TensorProto.INT64, ["n"]), value("scores", kind, ["n", 3])],
        [
            numpy_helper.from_array(weights, "W"),
            numpy_helper.from_array(np.array(0, np.int64), "zero"),
            numpy_helper.from_array(np.array(9, np.int64), "far"),
            numpy_helper.from_array(np.array([0], np.int64), "table"),
        ],
    )
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
        outputs=(
            TensorSpec(name="label", dtype="int64", shape=(-1,)),
            TensorSpec(name="scores", dtype="float32", shape=(-1, 3)),
        ),
    )
    rows = np.random.default_rng(0).normal(size=(200, 4))
    return pack_model(
        target, model, signature,
        profile=build_profile(dict(zip(FEATURES, rows.T, strict=True)), {}, "sha256:0"),
        name="wines", classes=(0, 1, 2), feature_columns=FEATURES, label_column="kind",
        prediction_output="label", score_output="scores",
    )  # fmt: skip


def price_bundle(target: Path, *, factor: float = 1.0, is_log: bool = False) -> Bundle:
    """A regressor: the sum of the features, times a factor or, for NaN, its logarithm."""
    kind = TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "ones"], ["sum" if is_log else "price"])]
    if is_log:
        nodes.append(helper.make_node("Log", ["sum"], ["price"]))
    model = save_model(
        nodes,
        [value("x", kind, ["n", 4])],
        [value("price", kind, ["n", 1])],
        [numpy_helper.from_array(np.full((4, 1), factor, np.float32), "ones")],
    )
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="price", dtype="float32", shape=(-1, 1)),),
    )
    rows = np.random.default_rng(0).normal(size=(200, 4))
    return pack_model(
        target, model, signature, task="regression",
        profile=build_profile(dict(zip(FEATURES, rows.T, strict=True)), {}, "sha256:0"),
        name="prices", feature_columns=FEATURES, label_column="price",
        prediction_output="price",
    )  # fmt: skip


def prices_file(path: Path, n_rows: int = 600) -> Path:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n_rows, 4)).astype(np.float32)
    price = (x.sum(axis=1) + rng.normal(size=n_rows) * 0.3).astype(np.float64)
    return save_dataset(Dataset(dict(zip(FEATURES, x.T, strict=True)), price, "price"), path)
