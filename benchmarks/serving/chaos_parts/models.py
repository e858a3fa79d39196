"""Models whose right answers are known: bundles, and onnxruntime itself beside the server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fairlead.core.bundle import (
    Bundle,
    BundleManifest,
    Provenance,
    RuntimeSettings,
    Scores,
    write_bundle,
)
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.profile import build_profile

__all__ = ["FEATURES", "Truth", "classifier", "heavy", "texts"]

FEATURES = ("a", "b", "c", "d")
_FLOAT, _INT64, _TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


@dataclass(frozen=True)
class Truth:
    """Right answers of every version there ever was, computed here."""

    sessions: dict[str, onnxruntime.InferenceSession]

    @classmethod
    def of(cls, *bundles: Bundle) -> Truth:
        """Open the models of bundles."""
        return cls({b.version: _session(b.path / b.manifest.model_file) for b in bundles})

    def __call__(self, version: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of a version; KeyError when there never was such a version."""
        session = self.sessions[version]
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def classifier(folder: Path, name: str, seed: int) -> Bundle:
    """Three classes from four floats; every seed another model."""
    draw = np.random.default_rng(seed)
    weights = draw.normal(size=(4, 3)).astype(np.float32)
    model = _model(
        [
            helper.make_node("MatMul", ["x", "W"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        [("x", _FLOAT, ["n", 4])],
        [("label", _INT64, ["n"]), ("scores", _FLOAT, ["n", 3])],
        W=weights,
    )
    inputs = (TensorSpec(name="x", dtype="float32", shape=(-1, 4)),)
    outputs = (
        TensorSpec(name="label", dtype="int64", shape=(-1,)),
        TensorSpec(name="scores", dtype="float32", shape=(-1, 3)),
    )
    return _bundle(
        folder, name, model, inputs, outputs, task="classification", classes=(0, 1, 2),
        feature_columns=FEATURES, prediction_output="label", score_output="scores",
    )  # fmt: skip


def texts(folder: Path) -> Bundle:
    """Gives a text back, and a number one larger."""
    model = _model(
        [
            helper.make_node("Identity", ["city"], ["echo"]),
            helper.make_node("Add", ["age", "one"], ["older"]),
        ],
        [("city", _TEXT, ["n", 1]), ("age", _FLOAT, ["n", 1])],
        [("echo", _TEXT, ["n", 1]), ("older", _FLOAT, ["n", 1])],
        one=np.array([[1.0]], np.float32),
    )
    kinds = ("string", "float32")
    inputs, outputs = (
        tuple(TensorSpec(name=n, dtype=k, shape=(-1, 1)) for n, k in zip(names, kinds, strict=True))
        for names in (("city", "age"), ("echo", "older"))
    )
    return _bundle(
        folder, "texts", model, inputs, outputs, task="regression", prediction_output="older"
    )


def heavy(folder: Path, size: int = 256, rounds: int = 8) -> Bundle:
    """Multiplies matrices for some milliseconds; `y` is the sum of a row."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["big", "m"], ["c0"]),
        *(helper.make_node("MatMul", ["big", f"c{i}"], [f"c{i + 1}"]) for i in range(rounds)),
        helper.make_node("ReduceSum", [f"c{rounds}"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "nothing"], ["y"]),
    ]
    model = _model(
        nodes, [("x", _FLOAT, ["n", 4])], [("y", _FLOAT, ["n", 1])],
        big=np.eye(size, dtype=np.float32), zero=np.array(0.0, np.float32),
        axis=np.array([1], np.int64),
    )  # fmt: skip
    return _bundle(
        folder, "heavy", model,
        (TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
        (TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
        task="regression", feature_columns=FEATURES, prediction_output="y",
    )  # fmt: skip


def _model(nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _bundle(
    folder: Path, name: str, model: onnx.ModelProto, inputs: tuple, outputs: tuple,
    **manifest: object,
) -> Bundle:  # fmt: skip
    rows = np.random.default_rng(0).normal(size=(50, 4))
    columns = dict(zip(FEATURES, rows.T, strict=True)) if len(inputs) == 1 else {
        "city": np.array(["Oslo", "Rome"], object), "age": np.array([1.0, 2.0]),
    }  # fmt: skip
    return write_bundle(
        folder,
        fill=lambda target: onnx.save(model, target / "model.onnx"),
        manifest=BundleManifest(
            name=name, kind="onnx", model_file="model.onnx",
            signature=Signature(inputs=inputs, outputs=outputs), **manifest,
        ),
        profile=build_profile(columns, {}, "sha256:synthetic"),
        scores=Scores(),
        runtime=RuntimeSettings(intra_op_threads=1, max_batch_size=32),
        provenance=Provenance(made_by="benchmark", source="synthetic", source_digest="sha256:0"),
    )  # fmt: skip
