import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fairlead.backends.onnx_graph import (
    check_graph,
    fold_constants,
    hoist_constants,
    read_graph,
    upgrade_opset,
    write_graph,
)
from fairlead.backends.onnx_quantization import prepare_quantization, quantize_dynamic_int8
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.errors import ModelError
from tests.optimize import zoo

FLOAT = onnx.TensorProto.FLOAT


def with_weights_computed_from_constants() -> onnx.ModelProto:
    """Return x · Wᵀ whose W is transposed and cast when the model runs."""
    weights = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=FLOAT),
        helper.make_node("Transpose", ["c"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    return zoo.network(
        nodes, {"w": weights}, inputs=[("x", FLOAT, ["n", 16])], outputs=[("y", FLOAT, ["n", 20])]
    )


def with_constant_nodes() -> onnx.ModelProto:
    weights = np.random.default_rng(0).normal(size=(16, 20)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return zoo.network(
        nodes, {}, inputs=[("x", FLOAT, ["n", 16])], outputs=[("y", FLOAT, ["n", 20])]
    )


def run(model: bytes | onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    source = model if isinstance(model, bytes) else model.SerializeToString()
    return OnnxRunner(source).run({"x": rows})["y"]


ROWS = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)


@pytest.mark.parametrize("make", [with_weights_computed_from_constants, with_constant_nodes])
def test_weights_that_are_not_initialisers_are_quantized_too(make, tmp_path) -> None:
    model = make()
    path = zoo.save(model, tmp_path / "m.onnx")
    graph, weights = prepare_quantization(path)
    assert weights.n_weights == 320
    quantized = quantize_dynamic_int8(graph)
    kinds = {node.op_type for node in onnx.load_from_string(quantized).graph.node}
    assert "MatMulInteger" in kinds
    np.testing.assert_allclose(run(quantized, ROWS), run(model, ROWS), atol=0.3)


def test_preparing_changes_no_answer(tmp_path) -> None:
    model = zoo.dense(opset=9, ir_version=4, last=None)
    graph, _ = prepare_quantization(zoo.save(model, tmp_path / "m.onnx"))
    assert graph.opset_import[0].version >= 11
    np.testing.assert_allclose(run(graph, ROWS), run(model, ROWS), rtol=1e-5)


def test_the_input_graph_is_never_changed() -> None:
    model = with_constant_nodes()
    before = model.SerializeToString()
    hoist_constants(model)
    fold_constants(model)
    upgrade_opset(model)
    assert model.SerializeToString() == before


def test_operators_can_be_left_alone(tmp_path) -> None:
    graph, weights = prepare_quantization(zoo.save(zoo.convolution(), tmp_path / "m.onnx"))
    assert weights.tensors_by_operator == {"Conv": 1, "MatMul": 1}
    quantized = onnx.load_from_string(quantize_dynamic_int8(graph, without=frozenset({"Conv"})))
    kinds = {node.op_type for node in quantized.graph.node}
    assert {"Conv", "MatMulInteger"} <= kinds


def test_metadata_of_the_model_survives(tmp_path) -> None:
    model = zoo.dense()
    model.metadata_props.add(key="author", value="me")
    graph, _ = prepare_quantization(zoo.save(model, tmp_path / "m.onnx"))
    quantized = onnx.load_from_string(quantize_dynamic_int8(graph))
    assert {item.key: item.value for item in quantized.metadata_props} == {"author": "me"}


def test_quantizing_says_nothing(tmp_path, capfd, caplog) -> None:
    graph, _ = prepare_quantization(zoo.save(zoo.dense(), tmp_path / "m.onnx"))
    quantize_dynamic_int8(graph)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_file_that_is_no_model_and_a_broken_graph(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="cannot be read"):
        read_graph(path)
    model = zoo.dense()
    model.graph.node[0].input[0] = "nobody"
    with pytest.raises(ModelError, match="not valid"):
        check_graph(model)


def test_external_data_that_is_missing(tmp_path) -> None:
    path = zoo.save(zoo.dense(), tmp_path / "m.onnx", external=True)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_graph(path)


def test_external_data_is_written_inside(tmp_path) -> None:
    model = zoo.dense(last=None)
    path = zoo.save(model, tmp_path / "m.onnx", external=True)
    np.testing.assert_allclose(
        run(write_graph(read_graph(path)), ROWS), run(zoo.dense(last=None), ROWS)
    )
