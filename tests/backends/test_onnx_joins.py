"""Sums and concatenations between 8-bit convolutions, and graphs that come unsorted."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fairlead.backends.onnx_graph import parse_graph, sort_nodes, write_graph
from fairlead.backends.onnx_layers import layers_of, name_nodes
from fairlead.backends.onnx_models import read_onnx
from fairlead.backends.onnx_qdq import QdqPlan, insert_qdq, joins_of, observed_tensors
from fairlead.backends.onnx_ranges import collect_statistics, ranges_of
from fairlead.core.errors import ModelError
from tests.optimize import zoo


def residual() -> onnx.ModelProto:
    """Two branches that are joined by a sum and by a concatenation, and pooled."""
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.normal(0, 0.4, (8, 1, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32),
        "c": rng.normal(0, 0.2, (8, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["ax"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["ax"], ["ar"]),
        helper.make_node("Conv", ["ar", "b"], ["bx"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["ar", "c"], ["cx"]),
        helper.make_node("Add", ["bx", "cx"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["sr"]),
        helper.make_node("Concat", ["sr", "ar"], ["both"], axis=1),
        helper.make_node("GlobalAveragePool", ["both"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    return zoo.network(
        nodes, weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        outputs=[("y", TensorProto.FLOAT, ["n", 16])],
    )  # fmt: skip


ROWS = np.random.default_rng(1).normal(0, 1, (32, 1, 8, 8)).astype(np.float32)


def quantized(*, joins: bool, without: str = "") -> onnx.ModelProto:
    graph = name_nodes(residual())
    seen = collect_statistics(graph, observed_tensors(graph), {"x": ROWS})
    layers = tuple(layer.name for layer in layers_of(graph) if layer.weight != without)
    return insert_qdq(graph, QdqPlan(layers, ranges_of(seen, "minmax", 99.99), joins=joins))


def kinds_that_run(model: onnx.ModelProto, folder) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "run.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(write_graph(model), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "run.onnx").graph.node]


def answers(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(write_graph(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": ROWS})[0]


def test_joins_run_in_8_bits_and_say_nearly_the_same(tmp_path) -> None:
    assert [node.op_type for node in joins_of(name_nodes(residual()))] == [
        "Add", "Concat", "GlobalAveragePool",
    ]  # fmt: skip
    model = quantized(joins=True)
    assert {"QLinearAdd", "QLinearConcat"} <= set(kinds_that_run(model, tmp_path))
    truth = answers(residual())
    assert np.abs(answers(model) - truth).max() < 0.05 * np.abs(truth).max()


def test_a_join_of_a_convolution_that_stays_in_float_stays_too(tmp_path) -> None:
    kinds = kinds_that_run(quantized(joins=True, without="b"), tmp_path)
    assert "QLinearAdd" not in kinds
    assert "QLinearConv" in kinds


def test_without_joins_the_sum_that_no_layer_reads_stays_in_float(tmp_path) -> None:
    assert "QLinearAdd" not in kinds_that_run(quantized(joins=False), tmp_path)


def test_a_convolution_that_gives_an_output_runs_in_8_bits_and_its_name_stays(tmp_path) -> None:
    model = residual()
    output = helper.make_tensor_value_info("bx", TensorProto.FLOAT, ["n", 8, 8, 8])
    model.graph.output.insert(0, output)
    graph = name_nodes(model)
    seen = ranges_of(
        collect_statistics(graph, observed_tensors(graph), {"x": ROWS}), "minmax", 99.99
    )
    layers = tuple(layer.name for layer in layers_of(graph))
    plain, narrow = (insert_qdq(graph, QdqPlan(layers, seen, joins=j)) for j in (False, True))
    assert "Conv" in kinds_that_run(plain, tmp_path)
    kinds = kinds_that_run(narrow, tmp_path)
    assert "Conv" not in kinds
    assert {"QLinearConv", "QLinearAdd"} <= set(kinds)
    assert [item.name for item in narrow.graph.output] == ["bx", "y"]
    truth = answers(graph)
    assert np.abs(answers(narrow) - truth).max() < 0.05 * np.abs(truth).max()


def shuffled() -> onnx.ModelProto:
    model = residual()
    nodes = list(model.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def test_an_unsorted_graph_is_sorted_and_answers_alike(tmp_path) -> None:
    path = zoo.save(shuffled(), tmp_path / "model.onnx")
    found = read_onnx(path)
    assert found.changes[0] == "sorted the nodes of the graph"
    np.testing.assert_allclose(answers(found.proto), answers(residual()), atol=1e-6)


def test_a_sorted_graph_is_left_alone_and_a_cycle_is_refused(tmp_path) -> None:
    model = residual()
    before = model.SerializeToString()
    assert not sort_nodes(model)
    assert model.SerializeToString() == before
    model.graph.node[0].input[0] = "both"
    assert not sort_nodes(parse_graph(model.SerializeToString()))
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        read_onnx(zoo.save(model, tmp_path / "cycle.onnx"))
