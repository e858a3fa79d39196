"""Biases of quantized matrix products, kept out of a fusion that would undo the 8 bits.

ONNX Runtime first turns a two-dimensional MatMul and the Add of its bias into one Gemm, and then
finds no 8-bit kernel for a Gemm whose output stays in float: it would expand the weights anew on
every run, which makes a small dense network many times slower than it is in fp32. A Sum of two
does what Add does and is no part of that fusion.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from fairlead.backends.onnx_graph import Graph
from fairlead.backends.onnx_layers import initializers

__all__ = ["keep_biases_apart"]

_SMALL = 1024
"""Constants of more values than this are no shapes."""


def keep_biases_apart(model: Graph, layers: Collection[str]) -> None:
    """Write the additions of biases after two-dimensional products as sums, in place.

    Args:
        model: A graph whose nodes are named.
        layers: Names of the matrix products that become 8 bits.
    """
    found = _biases(model, layers)
    ranks = _ranks(model) if found else {}
    for source, add in found:
        if ranks.get(source) == 2:
            add.op_type = "Sum"


def _biases(model: Graph, layers: Collection[str]) -> list[tuple[str, Any]]:
    """Return what flows into each product, and the addition of a constant that alone follows it."""
    constants = initializers(model)
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.name not in layers or node.input[1] not in constants:
            continue
        after = users.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "Add" and constants.keys() & {*after[0].input}:
            found.append((node.input[0], after[0]))
    return found


def _ranks(model: Graph) -> dict[str, int]:
    """Return tensor → number of its dimensions, where it can be inferred."""
    import onnx
    from onnx import helper, shape_inference

    graph = model.graph
    small = [one for one in graph.initializer if math.prod(one.dims) <= _SMALL]
    large = [
        helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
        for one in graph.initializer
        if math.prod(one.dims) > _SMALL
    ]
    inputs = [one for one in graph.input if one.name not in {item.name for item in large}]
    light = helper.make_model(
        helper.make_graph(graph.node, "light", [*inputs, *large], graph.output, small),
        opset_imports=list(model.opset_import),
    )
    try:
        seen = shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    return {
        one.name: len(one.type.tensor_type.shape.dim)
        for one in (*seen.value_info, *seen.input, *seen.output)
        if one.type.tensor_type.HasField("shape")
    }
