"""The default method on models of all kinds: each ends in a verdict, none in a foreign error."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fairlead.backends.openvino import has_openvino
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.dataset import Dataset, bind
from fairlead.optimize.quantization import QuantizationConfig, quantize
from fairlead.optimize.quantization.methods import METHODS
from fairlead.optimize.quantization.workbench import Workbench
from tests.optimize import zoo

CONFIG = QuantizationConfig(time_limit_s=0.2, max_drop=0.02, runtime="onnxruntime")


def lstm() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 0.2, (1, 4 * 24, 8)).astype(np.float32),
        "r": rng.normal(0, 0.2, (1, 4 * 24, 24)).astype(np.float32),
        "head": rng.normal(0, 0.2, (24, 4)).astype(np.float32),
        "axis": np.array([0], np.int64),
        "first": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["", "h", ""], hidden_size=24),
        helper.make_node("Squeeze", ["h", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "head"], ["y"]),
    ]
    return zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", "steps", 8])],
        outputs=[("y", TensorProto.FLOAT, ["n", 4])],
    )  # fmt: skip


def sequences(n_rows: int = 60) -> Dataset:
    values = np.random.default_rng(1).normal(0, 1, (n_rows, 6, 8)).astype(np.float32)
    return Dataset({"x": values}, source="sequences")


def two_inputs() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.normal(0, 0.2, (16, 64)).astype(np.float32),
        "b": rng.normal(0, 0.2, (8, 64)).astype(np.float32),
        "c": rng.normal(0, 0.2, (64, 4)).astype(np.float32),
        "scale": np.array(0.1, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["kf", "b"], ["kb"]),
        helper.make_node("Add", ["xa", "kb"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["y"]),
        helper.make_node("Mul", ["y", "scale"], ["z"]),
    ]
    return zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 16]), ("k", TensorProto.INT64, ["n", 8])],
        outputs=[("y", TensorProto.FLOAT, ["n", 4]), ("z", TensorProto.FLOAT, ["n", 4])],
    )  # fmt: skip


def both(n_rows: int = 80) -> Dataset:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (n_rows, 16)).astype(np.float32)
    return Dataset({"x": x, "k": rng.integers(0, 3, (n_rows, 8))}, source="pairs")


def shared_weight() -> onnx.ModelProto:
    weights = {"w": np.random.default_rng(0).normal(0, 0.2, (32, 32)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    return zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 32])], outputs=[("y", TensorProto.FLOAT, ["n", 32])],
    )  # fmt: skip


def deep_convolution() -> onnx.ModelProto:
    """Two convolutions with bias, activation and pooling, one depthwise, and a head."""
    rng = np.random.default_rng(0)
    weights = {
        "shape": np.array([-1, 1, 8, 8], np.int64),
        "k1": rng.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.1, 8).astype(np.float32),
        "k2": rng.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32),
        "k3": rng.normal(0, 0.2, (16, 8, 1, 1)).astype(np.float32),
        "b3": rng.normal(0, 0.1, 16).astype(np.float32),
        "w": rng.normal(0, 0.1, (10, 256)).astype(np.float32),
        "b": rng.normal(0, 0.1, 10).astype(np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "k1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Add", ["c2", "r1"], ["a2"]),
        helper.make_node("MaxPool", ["a2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "k3", "b3"], ["c3"]),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("Flatten", ["r3"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1),
    ]
    return zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 64])], outputs=[("y", TensorProto.FLOAT, ["n", 10])],
    )  # fmt: skip


MODELS = {
    "gemm": lambda: (zoo.dense(last=None), zoo.rows_for_dense()),
    "opset-9": lambda: (zoo.dense(opset=9, ir_version=4, last=None), zoo.rows_for_dense()),
    "opset-21": lambda: (zoo.dense(opset=21, ir_version=10, last=None), zoo.rows_for_dense()),
    "batch-1": lambda: (zoo.dense(batch=1, last=None), zoo.rows_for_dense()),
    "batch-7": lambda: (zoo.dense(batch=7, last=None), zoo.rows_for_dense()),
    "fp16": lambda: (zoo.dense(dtype=np.float16, last=None), zoo.rows_for_dense()),
    "fp64": lambda: (zoo.dense(dtype=np.float64, last=None), zoo.rows_for_dense()),
    "lstm": lambda: (lstm(), sequences()),
    "two-inputs": lambda: (two_inputs(), both()),
    "shared-weight": lambda: (shared_weight(), zoo.rows_for_dense(width=32)),
    "embedding": lambda: (zoo.embedding(), zoo.token_rows()),
    "convolutions": lambda: (deep_convolution(), zoo.digits_dataset(1200, 1400)),
    "few-rows": lambda: (zoo.dense(last=None), zoo.rows_for_dense(6)),
    "one-row": lambda: (zoo.dense(last=None), zoo.rows_for_dense(1)),
    "regression": zoo.diabetes_mlp,
    "forest": lambda: (zoo.digits_forest(), zoo.digits_dataset(1200, 1300)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_ends_in_a_verdict_within_the_budget(name, pack_bundle, tmp_path) -> None:
    model, data = MODELS[name]()
    bundle = pack_bundle(model, data)
    outcome = quantize(bundle, data, CONFIG, out=tmp_path / "q")
    report = outcome.report
    assert report.verdict in ("done", "kept", "refused")
    if report.verdict == "done":
        made = Bundle.open(tmp_path / "q")
        assert report.details["budget"]["value"] <= 0.02
        assert report.details["evaluations"] <= 4
        assert made.comparison() is not None
    if name in ("fp16", "fp64", "forest"):
        assert report.verdict == "kept"


@pytest.mark.parametrize("name", ["convolutions", "two-inputs", "shared-weight", "batch-7"])
def test_static_ranges_on_models_of_all_kinds(name, pack_bundle, tmp_path) -> None:
    model, data = MODELS[name]()
    config = CONFIG.model_copy(update={"method": "static-int8", "max_drop": 0.1, "goal": "size"})
    outcome = quantize(pack_bundle(model, data), data, config, out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    kinds = {node.op_type for node in onnx.load(outcome.noun.model_path).graph.node}
    assert "QuantizeLinear" in kinds


@pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
@pytest.mark.parametrize("name", ["gemm", "convolutions", "two-inputs"])
def test_openvino_runs_what_was_quantized_for_it(name, pack_bundle, tmp_path) -> None:
    model, data = MODELS[name]()
    config = CONFIG.model_copy(
        update={"runtime": "openvino", "method": "static-int8", "max_drop": 0.1, "goal": "size"}
    )
    outcome = quantize(pack_bundle(model, data), data, config, out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    made = Bundle.open(tmp_path / "q")
    assert made.runtime.execution_provider == "OpenVINO"
    runner = open_runner(made)
    feeds = bind(data, made.signature, feature_columns=made.manifest.feature_columns)
    answers = runner.run({key: array[:5] for key, array in feeds.items()})
    assert all(np.isfinite(array).all() for array in answers.values())


@pytest.mark.skipif(has_openvino(), reason="OpenVINO is installed")
def test_without_openvino_the_original_is_kept(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    config = CONFIG.model_copy(update={"runtime": "openvino"})
    bundle = pack_bundle(zoo.dense(last=None), data)
    outcome = quantize(bundle, data, config, out=tmp_path / "q")
    assert outcome.report.verdict == "kept"
    assert "OpenVINO is not installed" in outcome.report.summary


def test_dense_layers_are_also_tried_with_one_scale_per_weight(tmp_path) -> None:
    path = zoo.save(zoo.dense(last=None), tmp_path / "model.onnx")
    work = Workbench.open(path, None, QuantizationConfig(), RuntimeSettings())
    fine, coarse = METHODS["dynamic-int8"](work)
    assert "one scale per weight" in coarse.name
    assert len(coarse.model) < len(fine.model)
    only = QuantizationConfig(per_channel=False)
    assert len(METHODS["dynamic-int8"](Workbench.open(path, None, only, RuntimeSettings()))) == 1
