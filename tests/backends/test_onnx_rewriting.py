"""The rewriting of ONNX graphs that quantization is made of."""

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fairlead.backends.onnx_block_weights import block_quantize, blockable_layers
from fairlead.backends.onnx_divergence import layer_divergence
from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnx_half import overflowing_nodes, store_half
from fairlead.backends.onnx_layers import control_flow, layers_of, name_nodes, run_taps
from fairlead.backends.onnx_qdq import SWITCHES, QdqPlan, insert_qdq, observed_tensors
from fairlead.backends.onnx_ranges import (
    TensorStatistics,
    choose_range,
    collect_statistics,
    ranges_of,
)
from fairlead.backends.onnx_smoothing import smooth_layers
from fairlead.backends.onnxruntime import OnnxRunner
from tests.optimize import zoo

RNG = np.random.default_rng(0)


def rows(n_rows: int = 64, width: int = 16) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(0, 1, (n_rows, width)).astype(np.float32)}


def answer(model: onnx.ModelProto, feeds) -> np.ndarray:
    runner = OnnxRunner(write_graph(model))
    return runner.run(feeds)[runner.signature.outputs[0].name].astype(np.float64)


def error(model: onnx.ModelProto, other: onnx.ModelProto, feeds) -> float:
    old, new = answer(model, feeds), answer(other, feeds)
    return float(np.linalg.norm(old - new) / np.linalg.norm(old))


def dense(operator: str = "MatMul") -> onnx.ModelProto:
    return name_nodes(zoo.dense(sizes=(16, 64, 64, 8), operator=operator, last=None))


def planned(model: onnx.ModelProto, feeds, **changes) -> onnx.ModelProto:
    seen = collect_statistics(model, observed_tensors(model), feeds)
    names = tuple(layer.name for layer in layers_of(model))
    plan = {"layers": names, "ranges": ranges_of(seen, "minmax", 99.99), **changes}
    return insert_qdq(model, QdqPlan(**plan))


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("is_per_channel", [True, False])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_eight_bits_stay_close_and_small(operator, is_per_channel, is_symmetric) -> None:
    model = dense(operator)
    changed = planned(model, rows(), is_per_channel=is_per_channel, is_symmetric=is_symmetric)
    assert 0 < error(model, changed, rows()) < 0.04
    assert len(write_graph(changed)) < 0.6 * len(write_graph(model))
    onnx.checker.check_model(changed)


def test_only_the_planned_layers_change() -> None:
    model = dense()
    first = layers_of(model)[0].name
    changed = planned(model, rows(), layers=(first,))
    assert sum(node.op_type == "QuantizeLinear" for node in changed.graph.node) == 1
    kept = {layer.name: layer for layer in layers_of(changed)}
    assert kept[first].weight == ""
    assert all(layer.weight for name, layer in kept.items() if name != first)


def test_switches_play_every_mixture_in_one_session() -> None:
    model, feeds = dense(), rows()
    seen = collect_statistics(model, observed_tensors(model), feeds)
    names = tuple(layer.name for layer in layers_of(model))
    ranges = ranges_of(seen, "minmax", 99.99)
    runner = OnnxRunner(write_graph(insert_qdq(model, QdqPlan(names, ranges, switches=True))))
    for is_on in ([0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]):
        on = tuple(name for name, flag in zip(names, is_on, strict=True) if flag)
        real = answer(insert_qdq(model, QdqPlan(on, ranges)), feeds)
        played = runner.run({**feeds, SWITCHES: np.array(is_on, bool)})["y"]
        np.testing.assert_allclose(played, real, atol=2e-2 if any(is_on) else 1e-6)


def test_convolutions_become_eight_bits_with_their_activation() -> None:
    model = name_nodes(zoo.convolution())
    feeds = {"x": zoo.digits()[0][:64]}
    changed = planned(model, feeds)
    assert np.mean(answer(model, feeds).argmax(1) == answer(changed, feeds).argmax(1)) > 0.9
    kinds = [node.op_type for node in changed.graph.node]
    relu = kinds.index("Relu")
    assert kinds[relu + 1] == "QuantizeLinear"


def test_embedding_tables_are_stored_with_one_scale_per_row() -> None:
    model = name_nodes(zoo.embedding())
    feeds = {"ids": zoo.token_rows().columns["ids"]}
    changed = insert_qdq(model, QdqPlan((), {}))
    assert error(model, changed, feeds) < 0.01
    tables = [t for t in changed.graph.initializer if t.data_type == TensorProto.INT8]
    assert [tuple(t.dims) for t in tables] == [(100, 32)]


def outliers() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A layer whose first input channel is a hundred times as large as the others."""
    weights = {"w": RNG.normal(0, 0.2, (16, 32)).astype(np.float32)}
    weights["w"][0] /= 100
    model = zoo.network(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")],
        weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 16])],
        outputs=[("y", TensorProto.FLOAT, ["n", 32])],
    )
    feeds = rows()
    feeds["x"][:, 0] *= 100
    return model, feeds


def test_smoothing_changes_nothing_in_float_and_much_in_eight_bits() -> None:
    model, feeds = outliers()
    seen = collect_statistics(model, ["x"], feeds)
    smooth, touched = smooth_layers(model, seen, strength=0.5)
    assert touched == ("dense",)
    assert error(model, smooth, feeds) < 1e-5
    plain, better = planned(model, feeds), planned(smooth, feeds)
    assert error(model, better, feeds) < 0.25 * error(model, plain, feeds)


def test_smoothing_goes_into_a_normalisation_that_nobody_else_reads() -> None:
    weights = {
        "gamma": np.linspace(0.1, 50, 16).astype(np.float32),
        "beta": np.zeros(16, np.float32),
        "w": RNG.normal(0, 0.2, (16, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["y"], "dense"),
    ]
    model = zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 16])], outputs=[("y", TensorProto.FLOAT, ["n", 8])],
    )  # fmt: skip
    seen = collect_statistics(model, ["n"], rows())
    smooth, _ = smooth_layers(model, seen)
    assert [node.op_type for node in smooth.graph.node] == ["LayerNormalization", "MatMul"]
    assert error(model, smooth, rows()) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rounding", ["rtn", "hqq", "gptq"])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_blocks_of_few_bits(bits, rounding, operator) -> None:
    model, feeds = dense(operator), rows(256)
    layers = blockable_layers(model, block=16)
    sources = [layer.source for layer in layers]
    flow = {"x": feeds["x"]}
    for values in run_taps(model, sources, feeds, batch_rows=256):
        flow.update(values)
    inputs = {layer.name: flow[layer.source] for layer in layers}
    changed = block_quantize(
        model, [layer.name for layer in layers], bits=bits, block=16, rounding=rounding,
        inputs=inputs,
    )  # fmt: skip
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds.count("MatMulNBits") == 3
    assert error(model, changed, feeds) < (0.2 if bits == 4 else 0.02)
    assert len(write_graph(changed)) < (0.45 if bits == 4 else 0.65) * len(write_graph(model))


def test_gptq_beats_rounding_on_what_flows_through() -> None:
    weights = {"w": RNG.normal(0, 0.2, (64, 32)).astype(np.float32)}
    model = zoo.network(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")], weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 64])], outputs=[("y", TensorProto.FLOAT, ["n", 32])],
    )  # fmt: skip
    mix = np.random.default_rng(2).normal(0, 1, (64, 64))
    feeds = {"x": (np.random.default_rng(3).normal(0, 1, (512, 64)) @ mix).astype(np.float32)}
    found = {
        rounding: error(
            model,
            block_quantize(model, ["dense"], rounding=rounding, inputs={"dense": feeds["x"]}),
            feeds,
        )
        for rounding in ("rtn", "gptq")
    }
    assert found["gptq"] < 0.9 * found["rtn"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_the_bytes_and_nearly_the_same_numbers(dtype) -> None:
    model = dense()
    changed, stored = store_half(model, dtype)
    assert stored == 16 * 64 + 64 * 64 + 64 * 8
    assert error(model, changed, rows()) < (1e-3 if dtype == "fp16" else 1e-2)
    assert len(write_graph(changed)) < 0.6 * len(write_graph(model))


def test_weights_that_fp16_cannot_hold_stay() -> None:
    model = dense()
    for value in (1e6, 1e-8):
        for tensor in model.graph.initializer:
            if tensor.name == "w0":
                extreme = np.full((16, 64), value, np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(extreme, "w0"))
        _, stored = store_half(model, "fp16")
        assert stored == 64 * 64 + 64 * 8


def test_nodes_that_overflow_fp16_are_named() -> None:
    weights = {"w": (np.eye(16) * 1e5).astype(np.float32), "s": np.array(1e-5, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "huge"),
        helper.make_node("Mul", ["h", "s"], ["small"], "back"),
        helper.make_node("Tanh", ["small"], ["y"], "fine"),
    ]
    model = zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 16])], outputs=[("y", TensorProto.FLOAT, ["n", 16])],
    )  # fmt: skip
    assert overflowing_nodes(model, rows()) == ("huge", "back")


def test_the_layer_that_moved_most_is_named_first() -> None:
    model = dense()
    changed = planned(model, rows())
    worst = layers_of(model)[1].weight
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    for tensor in noisy.graph.initializer:
        if tensor.name == worst:
            values = onnx.numpy_helper.to_array(tensor) + RNG.normal(0, 1, (64, 64))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), worst))
    assert layer_divergence(model, noisy, rows())[0].sqnr_db < 10
    assert all(item.sqnr_db > 20 for item in layer_divergence(model, changed, rows()))
    assert all(item.sqnr_db > 100 for item in layer_divergence(model, model, rows()))


def test_control_flow_is_seen() -> None:
    assert control_flow(dense()) == ()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200), st.integers(1, 4))
@example([4.2e-45], 1)
def test_a_range_holds_zero_and_lies_within_what_was_seen(values, n_batches) -> None:
    seen = TensorStatistics()
    for piece in np.array_split(np.array(values, np.float32), n_batches):
        seen.add(piece)
    for method in ("minmax", "entropy", "percentile", "moving-average"):
        low, high = choose_range(seen, method)
        assert low <= 0 <= high
        assert low < high
        if seen.highest > 0 or seen.lowest < 0:
            assert low >= min(seen.lowest, 0) - 1e-6
            assert high <= max(seen.highest, 1.0)


def test_percentile_and_entropy_cut_a_lone_outlier_off() -> None:
    seen = TensorStatistics()
    values = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
    values[0] = 400.0
    seen.add(values)
    assert choose_range(seen, "minmax")[1] == 400
    assert choose_range(seen, "percentile")[1] < 10
    assert choose_range(seen, "entropy")[1] < 200


def test_values_that_are_no_numbers_do_not_widen_a_range() -> None:
    seen = TensorStatistics()
    seen.add(np.array([1.0, np.nan, np.inf, -2.0], np.float32))
    assert choose_range(seen, "minmax") == (-2.0, 1.0)
    assert seen.n_missing == 2


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_eight_bits_of_a_dense_layer_with_a_bias_survive_the_fusions(operator, tmp_path) -> None:
    import onnxruntime as ort

    model = name_nodes(zoo.dense(operator=operator, last=None))
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (64, 16)).astype(np.float32)}
    seen = collect_statistics(model, observed_tensors(model), feeds)
    names = tuple(layer.name for layer in layers_of(model))
    made = insert_qdq(model, QdqPlan(names, ranges_of(seen, "minmax", 99.99)))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(write_graph(made), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "fused.onnx")).graph.node}
    assert "DequantizeLinear" not in kinds
    assert not kinds & {"MatMul", "Gemm", "FusedGemm"}
    exact, found = (OnnxRunner(write_graph(one)).run(feeds)["y"] for one in (model, made))
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.99
