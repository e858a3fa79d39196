"""SmoothQuant: outliers move from activations, where 8 bits are few, into the weights.

A channel of an activation that is divided by a factor, and the row of the weight behind it that
is multiplied by the same factor, give the same product. With the factor
`max|x|^strength / max|w|^(1 - strength)` both fit into 8 bits (Xiao et al., ICML 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph
from fairlead.backends.onnx_layers import Layer, copy_graph, initializers, layers_of
from fairlead.backends.onnx_ranges import TensorStatistics

__all__ = ["smooth_layers"]

_FLOOR = 1e-5
_LARGEST = 1e4


def smooth_layers(
    model: Graph, seen: Mapping[str, TensorStatistics], *, strength: float = 0.5
) -> tuple[Graph, tuple[str, ...]]:
    """Equalise the channels in front of every dense layer.

    The division goes into the layer normalisation before it where nobody else reads that; else a
    multiplication is written into the graph.

    Args:
        model: A prepared graph in fp32.
        seen: Statistics of the activations in front of the layers.
        strength: How much of the difficulty moves into the weights, 0 to 1.

    Returns:
        The equalised copy, and the names of the layers it touched; its ranges differ from those
        of the original.
    """
    copy = copy_graph(model)
    constants = initializers(copy)
    axes = _input_axes(copy)
    groups: dict[str, list[Layer]] = {}
    for layer in layers_of(copy):
        if layer.name in axes and layer.source in seen:
            groups.setdefault(layer.source, []).append(layer)
    touched: list[str] = []
    for source, group in groups.items():
        peaks = seen[source].channel_peaks
        factors = None if peaks is None else _factors(group, axes, constants, peaks, strength)
        if factors is None:
            continue
        _apply(copy, source, group, axes, factors)
        touched += [layer.name for layer in group]
    return copy, tuple(touched)


def _input_axes(model: Graph) -> dict[str, int]:
    """Return layer → axis of its weight that counts input channels."""
    nodes = {node.name: node for node in model.graph.node}
    found = {}
    for layer in layers_of(model):
        if len(layer.shape) != 2 or layer.operator not in ("MatMul", "Gemm"):
            continue
        flags = {item.name: item.i for item in nodes[layer.name].attribute}
        if not flags.get("transA"):
            found[layer.name] = 1 if flags.get("transB") else 0
    return found


def _factors(
    group: list[Layer],
    axes: Mapping[str, int],
    constants: Mapping[str, Any],
    peaks: NDArray[np.float64],
    strength: float,
) -> NDArray[np.float32] | None:
    from onnx import numpy_helper

    if any(layer.shape[axes[layer.name]] != len(peaks) for layer in group):
        return None
    sizes = [
        np.abs(numpy_helper.to_array(constants[layer.weight])).max(axis=1 - axes[layer.name])
        for layer in group
    ]
    weights = np.maximum(np.max(sizes, axis=0), _FLOOR)
    raw = np.maximum(peaks, _FLOOR) ** strength / weights ** (1 - strength)
    factors = np.clip(raw / max(float(np.median(raw)), _FLOOR), 1 / _LARGEST, _LARGEST)
    # A channel that is always zero has nothing to move.
    return np.where(peaks > 0, factors, 1.0).astype(np.float32)


def _apply(
    model: Graph,
    source: str,
    group: list[Layer],
    axes: Mapping[str, int],
    factors: NDArray[np.float32],
) -> None:
    from onnx import helper, numpy_helper

    constants, names = initializers(model), {layer.name for layer in group}
    nodes = [node for node in model.graph.node if node.name in names]
    for layer, node in zip(group, nodes, strict=True):
        values = numpy_helper.to_array(constants[layer.weight])
        shape = (-1, 1) if axes[layer.name] == 0 else (1, -1)
        name = f"{layer.weight}_{layer.name}_smooth"
        model.graph.initializer.append(
            numpy_helper.from_array((values * factors.reshape(shape)).astype(np.float32), name)
        )
        node.input[1] = name
    if _fold(model, source, nodes, factors):
        return
    model.graph.initializer.append(
        numpy_helper.from_array((1 / factors).astype(np.float32), f"{source}_smooth_by")
    )
    for node in nodes:
        node.input[0] = f"{source}_smooth"
    first = next(i for i, node in enumerate(model.graph.node) if node.name in names)
    ends = [source, f"{source}_smooth_by"]
    model.graph.node.insert(
        first, helper.make_node("Mul", ends, [f"{source}_smooth"], f"{source}_smooth_Mul")
    )


def _fold(model: Graph, source: str, readers: list[Any], factors: NDArray[np.float32]) -> bool:
    """Divide inside a layer normalisation whose result only these layers read."""
    from onnx import numpy_helper

    constants = initializers(model)
    users = [node for node in model.graph.node if source in node.input]
    maker = next((node for node in model.graph.node if source in node.output), None)
    is_alone = len(users) == len(readers) and source not in {o.name for o in model.graph.output}
    if not is_alone or maker is None or maker.op_type != "LayerNormalization":
        return False
    places = range(1, len(maker.input))
    if any(maker.input[place] not in constants for place in places):
        return False
    for place in places:
        values = numpy_helper.to_array(constants[maker.input[place]])
        name = f"{maker.input[place]}_{maker.name}_smooth"
        model.graph.initializer.append(
            numpy_helper.from_array((values / factors).astype(np.float32), name)
        )
        maker.input[place] = name
    return True
