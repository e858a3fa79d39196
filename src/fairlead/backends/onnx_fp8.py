"""Pairs of QuantizeLinear and DequantizeLinear with 8-bit floats around the layers of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fairlead.backends.onnx_graph import Graph, upgrade_opset
from fairlead.backends.onnx_layers import copy_graph, drop_unused, initializers, layers_of

__all__ = ["insert_fp8"]

_LARGEST = 448.0
"""Largest number of E4M3."""
_TINY = 1e-12
_ZERO = "fairlead_f8_zero"
_OLDEST_OPSET = 19


def insert_fp8(
    model: Graph, layers: Iterable[str], ranges: Mapping[str, tuple[float, float]]
) -> Graph:
    """Return a copy of the model whose layers take and multiply 8-bit floats (E4M3).

    Args:
        model: A prepared graph, nodes named.
        layers: Names of the layers.
        ranges: Activation → (low, high); a layer whose source has none stays in fp32.

    Raises:
        ModelError: The opset is too old for 8-bit floats and cannot be raised.
    """
    copy = upgrade_opset(copy_graph(model), oldest=_OLDEST_OPSET)
    constants, chosen = initializers(copy), set(layers)
    nodes = {node.name: node for node in copy.graph.node}
    pairs: dict[str, str] = {}
    head: list[Any] = []
    before: dict[str, list[Any]] = {}
    makers = {name: node for node in copy.graph.node for name in node.output}
    for layer in layers_of(copy):
        if layer.name not in chosen or layer.source not in ranges:
            continue
        if not _is_safe(copy, makers.get(layer.source)):
            continue
        node, where = nodes[layer.name], before.setdefault(layer.name, [])
        if layer.source not in pairs:
            top = max(map(abs, ranges[layer.source]))
            pairs[layer.source] = _pair(copy, layer.source, max(top, _TINY) / _LARGEST, where)
        if layer.weight not in pairs:
            pairs[layer.weight] = _weight(copy, constants[layer.weight], head)
        node.input[0], node.input[1] = pairs[layer.source], pairs[layer.weight]
    written = [n for node in copy.graph.node for n in (*before.get(node.name, ()), node)]
    copies = [type(node).FromString(node.SerializeToString()) for node in (*head, *written)]
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(copies)
    drop_unused(copy)
    return copy


def _is_safe(model: Graph, producer: Any) -> bool:  # noqa: ANN401 (untyped library)
    """Whether a pair may follow a node; a Relu becomes a Max first.

    ONNX Runtime takes a Relu or Clip away in front of QuantizeLinear, as if the zero point were
    the smallest level, which it is not of 8-bit floats: the answers would be wrong.
    """
    if producer is None or producer.op_type not in ("Relu", "Clip"):
        return True
    if producer.op_type == "Clip":
        return False
    from onnx import numpy_helper

    if _ZERO not in initializers(model):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), _ZERO))
    producer.op_type = "Max"
    producer.input.append(_ZERO)
    return True


def _pair(model: Graph, tensor: str, scale: float, where: list[Any]) -> str:
    """Write a pair that reads a tensor; return the name of what comes out."""
    from onnx import TensorProto, helper, numpy_helper

    name = f"{tensor}_f8"
    ends = [f"{name}_scale", f"{name}_zero"]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(scale, np.float32), ends[0]),
            helper.make_tensor(ends[1], TensorProto.FLOAT8E4M3FN, [], [0.0]),
        ]
    )
    where.append(helper.make_node("QuantizeLinear", [tensor, *ends], [f"{name}_8"], f"{name}_Q"))
    where.append(helper.make_node("DequantizeLinear", [f"{name}_8", *ends], [name], f"{name}_DQ"))
    return name


def _weight(model: Graph, tensor: Any, head: list[Any]) -> str:  # noqa: ANN401 (untyped library)
    """Store a weight in 8-bit floats; return the name of what a layer reads."""
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float32)
    scale = max(float(np.abs(values).max(initial=0.0)), _TINY) / _LARGEST
    name = f"{tensor.name}_f8"
    model.graph.initializer.extend(
        [
            helper.make_tensor(
                f"{name}_8", TensorProto.FLOAT8E4M3FN, values.shape, (values / scale).ravel()
            ),
            numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"),
            helper.make_tensor(f"{name}_zero", TensorProto.FLOAT8E4M3FN, [], [0.0]),
        ]
    )
    ends = [f"{name}_8", f"{name}_scale", f"{name}_zero"]
    head.append(helper.make_node("DequantizeLinear", ends, [name], f"{name}_DQ"))
    return name
