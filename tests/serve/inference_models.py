"""Small real models as bundles, made without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fairlead.core.bundle import (
    Bundle,
    BundleManifest,
    Provenance,
    RuntimeSettings,
    Scores,
    write_bundle,
)
from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.profile import build_profile

FEATURES = ("a", "b", "c", "d")
_FLOAT, _INT64, _TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def save_model(nodes, inputs, outputs, initializers=()) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def pack_model(
    target: Path,
    model: bytes,
    signature: Signature,
    *,
    profile: ReferenceProfile,
    task="classification",
    runtime: RuntimeSettings | None = None,
    **manifest,
) -> Bundle:
    def fill(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(model)
        (folder / "MLmodel").write_text("flavors: {}\n")

    return write_bundle(
        target,
        fill=fill,
        manifest=BundleManifest(
            kind="onnx", model_file="model.onnx", task=task, signature=signature, **manifest
        ),
        profile=profile,
        scores=Scores(),
        runtime=runtime or RuntimeSettings(max_batch_size=16),
        provenance=Provenance(made_by="test", source="test", source_digest="sha256:0"),
    )


def classifier_bundle(
    target: Path, *, batch: int | str = "n", shift: float = 0.0, name="wines", runtime=None
) -> Bundle:
    """Three classes from four floats: argmax(x W + b), with softmax scores."""
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, -1]], np.float32)
    bias = np.array([shift, 0, 0], np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    model = save_model(
        nodes,
        [value("x", _FLOAT, [batch, 4])],
        [value("label", _INT64, [batch]), value("scores", _FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(bias, "b")],
    )
    size = batch if isinstance(batch, int) else -1
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(size, 4)),),
        outputs=(
            TensorSpec(name="label", dtype="int64", shape=(size,)),
            TensorSpec(name="scores", dtype="float32", shape=(size, 3)),
        ),
    )
    rows = np.random.default_rng(0).normal(size=(200, 4))
    columns = dict(zip(FEATURES, rows.T, strict=True))
    return pack_model(
        target,
        model,
        signature,
        profile=build_profile(columns, {}, "sha256:0"),
        name=name,
        classes=(0, 1, 2),
        feature_columns=FEATURES,
        label_column="kind",
        prediction_output="label",
        score_output="scores",
        runtime=runtime,
    )


def text_bundle(target: Path) -> Bundle:
    """A text column and a number: echoes the text, adds 1 to the number."""
    nodes = [
        helper.make_node("StringNormalizer", ["flat"], ["loud"], case_change_action="UPPER"),
        helper.make_node("Identity", ["city"], ["echo"]),
        helper.make_node("Add", ["age", "one"], ["older"]),
    ]
    model = save_model(
        nodes[1:],
        [value("city", _TEXT, ["n", 1]), value("age", _FLOAT, ["n", 1])],
        [value("echo", _TEXT, ["n", 1]), value("older", _FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.array([[1.0]], np.float32), "one")],
    )
    signature = Signature(
        inputs=(
            TensorSpec(name="city", dtype="string", shape=(-1, 1)),
            TensorSpec(name="age", dtype="float32", shape=(-1, 1)),
        ),
        outputs=(
            TensorSpec(name="echo", dtype="string", shape=(-1, 1)),
            TensorSpec(name="older", dtype="float32", shape=(-1, 1)),
        ),
    )
    columns = {
        "city": np.array(["Oslo", "Rome", "Oslo", None], object),
        "age": np.array([1.0, 2.0, 3.0, np.nan]),
    }
    return pack_model(
        target,
        model,
        signature,
        profile=build_profile(columns, {}, "sha256:0"),
        name="people",
        task="regression",
        prediction_output="older",
    )


def dtypes_bundle(target: Path) -> Bundle:
    """One identity per numeric dtype of the protocol."""
    kinds = {
        "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16,
        "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64, "int8": TensorProto.INT8,
        "int16": TensorProto.INT16, "int32": TensorProto.INT32, "int64": _INT64,
        "float16": TensorProto.FLOAT16, "float32": _FLOAT, "float64": TensorProto.DOUBLE,
        "string": _TEXT,
    }  # fmt: skip
    names = list(kinds)
    model = save_model(
        [helper.make_node("Identity", [n], [f"{n}_out"]) for n in names],
        [value(n, kinds[n], ["n", 2]) for n in names],
        [value(f"{n}_out", kinds[n], ["n", 2]) for n in names],
    )
    signature = Signature(
        inputs=tuple(TensorSpec(name=n, dtype=n, shape=(-1, 2)) for n in names),
        outputs=tuple(TensorSpec(name=f"{n}_out", dtype=n, shape=(-1, 2)) for n in names),
    )
    return pack_model(
        target,
        model,
        signature,
        profile=ReferenceProfile(n_rows=0, columns=()),
        name="dtypes",
        task="other",
        prediction_output="float32_out",
    )


def slow_bundle(target: Path, *, size: int = 500, rounds: int = 12) -> Bundle:
    """Multiplies big matrices for a while; `y` is the sum of `x` over its four columns."""
    big = np.eye(size, dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["x", "spread"], ["h0"])]
    for i in range(rounds):
        nodes.append(helper.make_node("MatMul", ["big", f"c{i}"], [f"c{i + 1}"]))
    nodes += [
        helper.make_node("ReduceSum", [f"c{rounds}"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("Add", ["h0", "nothing"], ["y"]),
    ]
    # Depends on x, so that the runtime cannot fold the work into a constant.
    nodes.insert(1, helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0))
    nodes.insert(2, helper.make_node("Mul", ["big", "m"], ["c0"]))
    model = save_model(
        nodes,
        [value("x", _FLOAT, ["n", 4])],
        [value("y", _FLOAT, ["n", 1])],
        [
            numpy_helper.from_array(np.ones((4, 1), np.float32), "spread"),
            numpy_helper.from_array(big, "big"),
            numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
        ],
    )
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
    )
    rows = np.random.default_rng(0).normal(size=(50, 4))
    return pack_model(
        target,
        model,
        signature,
        profile=build_profile(dict(zip(FEATURES, rows.T, strict=True)), {}, "sha256:0"),
        name="slow",
        task="regression",
        feature_columns=FEATURES,
        prediction_output="y",
    )
