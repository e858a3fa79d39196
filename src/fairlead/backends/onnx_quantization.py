"""Dynamic INT8 quantization of ONNX models by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairlead.backends.onnx_graph import (
    Graph,
    fold_constants,
    hoist_constants,
    quiet_logging,
    read_graph,
    upgrade_opset,
    with_shapes,
    write_graph,
)
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.files import scratch_folder
from fairlead.core.values import Value

__all__ = ["QuantizableWeights", "prepare_quantization", "quantize_dynamic_int8"]

_WEIGHT_INPUTS = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "LSTM": (1, 2),
    "Attention": (1,),
    "Gather": (0,),
}
"""Operators whose weights the method stores in 8 bits, and the inputs those weights are."""


class QuantizableWeights(Value):
    """The weights of a model that can be stored in 8 bits.

    Attributes:
        tensors_by_operator: Operator → number of weight tensors.
        n_weights: Weights in them, in all.
    """

    tensors_by_operator: dict[str, int]
    n_weights: int


def prepare_quantization(path: Path) -> tuple[Graph, QuantizableWeights]:
    """Read a model and bring it into the shape that quantization needs.

    The opset is raised where it is too old, constants become initialisers, and weights that are
    computed from constants are folded. Shapes are inferred where they can be; where they cannot,
    quantization goes on without.

    Returns:
        The graph, and the weights in it that can be quantized.

    Raises:
        ModelError: The model cannot be read, or its opset is too old to convert.
    """
    model = hoist_constants(upgrade_opset(read_graph(path)))
    found = _quantizable(model)
    if not found.n_weights and any(node.op_type in _WEIGHT_INPUTS for node in model.graph.node):
        folded = hoist_constants(fold_constants(model))
        if _quantizable(folded).n_weights:
            model, found = folded, _quantizable(folded)
    return model, found


def _quantizable(model: Graph) -> QuantizableWeights:
    import onnx

    floats = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2
    }
    used: dict[str, str] = {}
    for node in model.graph.node:
        for place in _WEIGHT_INPUTS.get(node.op_type, ()):
            if place < len(node.input) and node.input[place] in floats:
                used.setdefault(node.input[place], node.op_type)
    counts: dict[str, int] = {}
    for operator in used.values():
        counts[operator] = counts.get(operator, 0) + 1
    sizes = (_n_values(floats[name]) for name in used)
    return QuantizableWeights(tensors_by_operator=counts, n_weights=sum(sizes))


def _n_values(tensor: Any) -> int:  # noqa: ANN401 (untyped library)
    n_values = 1
    for size in tensor.dims:
        n_values *= size
    return n_values


def quantize_dynamic_int8(
    model: Graph,
    *,
    without: frozenset[str] = frozenset(),
    float_nodes: Iterable[str] = (),
    is_per_channel: bool = True,
) -> bytes:
    """Store weights as int8; activations are quantized as they come.

    Falls back to one scale per tensor where an operator does not support one per channel.

    Args:
        model: A graph from `prepare_quantization`; it is not changed.
        without: Operators that stay as they are.
        float_nodes: Names of single nodes that stay as they are.
        is_per_channel: One scale per channel of a weight, or one per weight.

    Returns:
        The quantized model.

    Raises:
        ModelError: ONNX Runtime cannot quantize it.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    with requires("optimize", needed_by="quantization"):
        from onnxruntime import quantization  # noqa: F401 (here to name the missing library)
    failure: Exception | None = None
    for graph in (with_shapes(model), model):
        for is_fine in (True, False) if is_per_channel else (False,):
            try:
                return _quantize(graph, without, tuple(float_nodes), is_fine)
            except ModelError:
                raise
            except Exception as exc:  # noqa: BLE001 (untyped library; the last one is handed on)
                failure = exc
    text = (str(failure).strip() or type(failure).__name__).splitlines()[0][:300]
    raise ModelError(
        f"ONNX Runtime cannot quantize the model: {text}",
        hint="export the model again with opset 13 or newer",
    ) from failure


def _quantize(
    model: Graph, without: frozenset[str], float_nodes: tuple[str, ...], is_per_channel: bool
) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = onnx.ModelProto()
    source.CopyFrom(model)
    # ONNX Runtime warns through the root logger when this mark of its own preparation is missing.
    source.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    operators = sorted(set(_WEIGHT_INPUTS) - without)
    with scratch_folder("quantize") as folder, quiet_logging():
        target = folder / "model.onnx"
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=operators,
            nodes_to_exclude=list(float_nodes),
            per_channel=is_per_channel,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        result = onnx.load(str(target))
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    del result.graph.value_info[:]
    return write_graph(result)
