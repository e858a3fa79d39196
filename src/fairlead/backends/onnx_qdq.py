"""Static INT8: pairs of QuantizeLinear and DequantizeLinear around the layers of an ONNX graph.

The pairs are written here and not by ONNX Runtime's own tool, because a search needs them to be
laid per layer, with any range and any weights, and because that tool fails on some exports. ONNX
Runtime and OpenVINO fuse them into 8-bit kernels. With `switches`, every pair can be turned on and
off at run time by an extra input, so that one session plays every mixture of precisions.

Activations are uint8 with a zero point (or symmetric), weights int8, symmetric, one scale per
output channel (Jacob et al., CVPR 2018; Krishnamoorthi, arXiv 1806.08342).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_bias_sums import keep_biases_apart
from fairlead.backends.onnx_graph import Graph
from fairlead.backends.onnx_layers import Layer, copy_graph, drop_unused, initializers, layers_of

__all__ = [
    "SWITCHES",
    "QdqPlan",
    "channel_axis",
    "insert_qdq",
    "joins_of",
    "observed_tensors",
]

SWITCHES = "fairlead_switches"
"""Name of the input that turns layers on: bool, one value per layer."""

_TINY = 1e-12
_FUSED_AFTER = {"Relu", "Clip"}
_NEEDS_OUTPUT = {"Conv", "ConvTranspose"}
"""Operators whose 8-bit kernel also gives 8 bits."""
_JOINS = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
"""Operators between convolutions that ONNX Runtime computes in 8 bits as well."""
_PASSES = {"Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}
"""Operators whose result has the levels of what they take."""


@dataclass(frozen=True)
class QdqPlan:
    """What is quantized, and how.

    Attributes:
        layers: Layers to quantize, by name of their node.
        ranges: Activation → (low, high); a layer whose source has none stays in fp32.
        is_per_channel: One scale per output channel, or one per weight tensor.
        is_symmetric: Whether zero lies in the middle of the activations' levels.
        tables: Whether embedding tables are stored in int8, one scale per row.
        is_dynamic: Ranges are those of every batch; only with `switches`.
        joins: Whether sums, concatenations and pools between convolutions give 8 bits as well, and
            what convolutions give to the caller has gone through 8 bits.
        switches: Whether an extra input turns every layer on or off.
    """

    layers: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]] = field(repr=False)
    is_per_channel: bool = True
    is_symmetric: bool = False
    tables: bool = True
    is_dynamic: bool = False
    joins: bool = False
    switches: bool = False


def observed_tensors(model: Graph) -> tuple[str, ...]:
    """Return the activations whose ranges `insert_qdq` needs."""
    users = _users(model)
    names: list[str] = []
    for layer in layers_of(model):
        names += [layer.source, *_second(model, layer)]
        if layer.operator in _NEEDS_OUTPUT:
            names.append(_outlet(layer.output, users))
    names += [_outlet(node.output[0], users) for node in joins_of(model)]
    return tuple(dict.fromkeys(names))


def joins_of(model: Graph) -> tuple[Any, ...]:
    """Return the nodes that combine only what convolutions gave, in order of execution."""
    constants = initializers(model)
    narrow = {layer.output for layer in layers_of(model) if layer.operator in _NEEDS_OUTPUT}
    found = []
    for node in model.graph.node:
        is_join = node.op_type in _JOINS
        taken = [name for name in node.input if name] if is_join else node.input[:1]
        if not (is_join or node.op_type in _PASSES) or not taken or not narrow.issuperset(taken):
            continue
        if any(name in constants for name in taken):
            continue
        narrow.update(node.output)
        if is_join:
            found.append(node)
    return tuple(found)


def channel_axis(model: Graph, layer: Layer) -> int | None:
    """Return the axis of a weight that counts output channels; None when there is no single one."""
    node = next(node for node in model.graph.node if node.name == layer.name)
    attributes = {item.name: item.i for item in node.attribute}
    if layer.operator == "MatMul":
        return 1 if len(layer.shape) == 2 else None
    if layer.operator == "Gemm":
        return 0 if attributes.get("transB") else 1
    if layer.operator == "Conv":
        return 0
    return 1 if attributes.get("group", 1) in (0, 1) else None


def insert_qdq(model: Graph, plan: QdqPlan) -> Graph:
    """Return a copy of the model with the planned layers in 8 bits.

    Args:
        model: A prepared graph, nodes named, opset 13 or newer.
        plan: What is quantized.
    """
    chosen = set(plan.layers)
    whole = copy_graph(model)
    if not plan.switches:
        keep_biases_apart(whole, chosen)
    writer = _Writer(whole, plan)
    place = {name: index for index, name in enumerate(plan.layers)}
    for layer in layers_of(model):
        if layer.name in chosen:
            writer.quantize(layer, place[layer.name])
    if plan.joins and not (plan.switches or plan.is_dynamic):
        for node in joins_of(model):
            writer.join(node.output[0])
    if plan.tables and not plan.switches:
        writer.shrink_tables()
    return writer.finish()


class _Writer:
    """Rewrites one graph."""

    def __init__(self, model: Graph, plan: QdqPlan) -> None:
        self.model, self.plan = model, plan
        self.constants = initializers(model)
        self.users = _users(model)
        self.nodes = {node.name: node for node in model.graph.node}
        self.pairs: dict[str, str] = {}
        self.before: dict[str, list[Any]] = {}
        self.after: dict[str, list[Any]] = {}
        self.head: list[Any] = []
        self.flags: dict[int, str] = {}

    def quantize(self, layer: Layer, place: int) -> None:
        """Lay pairs around one layer, unless a range is missing."""
        node = self.nodes[layer.name]
        others = _second(self.model, layer)
        outlet = _outlet(layer.output, self.users) if layer.operator in _NEEDS_OUTPUT else ""
        needed = [layer.source, *others, *([outlet] if outlet else [])]
        ranges = self.plan.ranges
        if not self.plan.is_dynamic and any(name not in ranges for name in needed):
            return
        flag = self._flag(place) if self.plan.switches else ""
        node.input[0] = self._activation(layer.source, node, flag)
        if layer.weight:
            scales = self._weight(layer, node, flag)
            if not self.plan.switches:
                self._bias(layer, node, scales)
        else:
            node.input[1] = self._activation(others[0], node, flag)
        if outlet and not self.plan.is_dynamic:
            self._outlet_pair(outlet, flag)

    def _activation(self, tensor: str, node: Any, flag: str) -> str:  # noqa: ANN401
        if tensor not in self.pairs:
            self.pairs[tensor] = self._pair(tensor, self.before.setdefault(node.name, []))
        return self._switched(flag, self.pairs[tensor], tensor, node.name)

    def _pair(self, tensor: str, where: list[Any], *, ranged_as: str = "") -> str:
        """Write a pair that reads a tensor; return the name of what comes out."""
        from onnx import helper

        name = f"{tensor}_q8"
        scale, zero = f"{name}_scale", f"{name}_zero"
        if self.plan.is_dynamic:
            ends = [f"{name}_int", scale, zero]
            where.append(helper.make_node("DynamicQuantizeLinear", [tensor], ends, f"{name}_Q"))
        else:
            step, middle = _levels(*self.plan.ranges[ranged_as or tensor], self.plan.is_symmetric)
            self._constant(scale, np.array(step, np.float32))
            self._constant(zero, np.array(middle, np.uint8))
            where.append(
                helper.make_node(
                    "QuantizeLinear", [tensor, scale, zero], [f"{name}_int"], f"{name}_Q"
                )
            )
        where.append(
            helper.make_node("DequantizeLinear", [f"{name}_int", scale, zero], [name], f"{name}_DQ")
        )
        return name

    def _switched(self, flag: str, on: str, off: str, node: str) -> str:
        """Choose between a tensor and its 8-bit shadow at run time."""
        if not flag:
            return on
        from onnx import helper

        name = f"{on}_{flag}"
        if all(name not in item.output for item in self.before.get(node, ())):
            chosen = helper.make_node("Where", [flag, on, off], [name], f"{name}_Where")
            self.before.setdefault(node, []).append(chosen)
        return name

    def _weight(self, layer: Layer, node: Any, flag: str) -> NDArray[np.float32]:  # noqa: ANN401
        from onnx import helper, numpy_helper

        axis = channel_axis(self.model, layer) if self.plan.is_per_channel else None
        values = numpy_helper.to_array(self.constants[layer.weight]).astype(np.float32)
        numbers, scales = _int8_weights(values, axis)
        name = f"{layer.weight}_w8" + ("" if self.plan.is_per_channel else "t")
        if name not in self.pairs:
            self.pairs[name] = name
            self._constant(f"{name}_int", numbers)
            self._constant(f"{name}_scale", scales)
            self._constant(f"{name}_zero", np.zeros(scales.shape, np.int8))
            ends = [f"{name}_int", f"{name}_scale", f"{name}_zero"]
            extra: dict[str, Any] = {} if axis is None else {"axis": axis}
            self.head.append(
                helper.make_node("DequantizeLinear", ends, [name], f"{name}_DQ", **extra)
            )
        node.input[1] = self._switched(flag, name, layer.weight, node.name)
        return np.broadcast_to(scales, (values.shape[axis],) if axis is not None else ())

    def _bias(self, layer: Layer, node: Any, scales: NDArray[np.float32]) -> None:  # noqa: ANN401
        """Store a bias in int32 at the scale of the products, as 8-bit kernels want it."""
        from onnx import helper, numpy_helper

        if layer.operator == "MatMul" or len(node.input) < 3 or not node.input[2]:
            return
        tensor = self.constants.get(node.input[2])
        beta = next((item.f for item in node.attribute if item.name in ("beta", "alpha")), 1.0)
        if tensor is None or len(tensor.dims) != 1 or beta != 1.0:
            return
        values = numpy_helper.to_array(tensor).astype(np.float64)
        step, _ = _levels(*self.plan.ranges[layer.source], self.plan.is_symmetric)
        products = np.asarray(scales, np.float32) * np.float32(step)
        if products.ndim and len(products) != len(values):
            return
        name = f"{layer.name}_b32"
        limit = 2.0**31 - 1
        self._constant(
            f"{name}_int",
            np.clip(np.round(values / np.maximum(products, 1e-30)), -limit, limit).astype(np.int32),
        )
        self._constant(f"{name}_scale", products.astype(np.float32))
        self._constant(f"{name}_zero", np.zeros(products.shape, np.int32))
        ends = [f"{name}_int", f"{name}_scale", f"{name}_zero"]
        extra: dict[str, Any] = {"axis": 0} if products.ndim else {}
        self.head.append(helper.make_node("DequantizeLinear", ends, [name], f"{name}_DQ", **extra))
        node.input[2] = name

    def join(self, tensor: str) -> None:
        """Lay a pair behind a join whose convolutions were all quantized."""
        outlet = _outlet(tensor, self.users)
        node = next(node for node in self.model.graph.node if tensor in node.output)
        if outlet in self.plan.ranges and all(self._is_narrow(name) for name in node.input if name):
            self._outlet_pair(outlet, "")

    def _is_narrow(self, tensor: str) -> bool:
        """Whether a tensor comes out of a pair, with nothing between that changes its levels."""
        if tensor in self.pairs.values():
            return True
        producer = next((n for n in self.model.graph.node if tensor in n.output), None)
        if producer is None or producer.op_type not in _PASSES:
            return False
        return self._is_narrow(producer.input[0])

    def _outlet_pair(self, tensor: str, flag: str) -> None:
        """Lay a pair behind a convolution; all who read the tensor read what comes out."""
        if tensor in {item.name for item in self.model.graph.output}:
            if self.plan.joins and not flag:
                self._last_pair(tensor)
            return
        producer = next(n for n in self.model.graph.node if tensor in n.output)
        written = self.after.setdefault(producer.name, [])
        if tensor not in self.pairs:
            self.pairs[tensor] = self._pair(tensor, written)
        else:
            self._move(tensor, written)
        result = self.pairs[tensor]
        if flag:
            from onnx import helper

            result = f"{tensor}_out_{flag}"
            written.append(
                helper.make_node("Where", [flag, self.pairs[tensor], tensor], [result], result)
            )
        for user in self.users.get(tensor, ()):
            for index, name in enumerate(user.input):
                if name == tensor:
                    user.input[index] = result

    def _last_pair(self, tensor: str) -> None:
        """Lay a pair between a convolution and an output of the model, which keeps its name.

        Without it the kernel has to give floats, for which there is none in 8 bits.
        """
        if tensor in self.pairs:
            return
        producer = next(n for n in self.model.graph.node if tensor in n.output)
        inner = f"{tensor}_before_q8"
        producer.output[list(producer.output).index(tensor)] = inner
        written = self.after.setdefault(producer.name, [])
        self._pair(inner, written, ranged_as=tensor)
        written[-1].output[0] = tensor
        self.pairs[tensor] = tensor

    def _move(self, tensor: str, target: list[Any]) -> None:
        """Bring a pair that was written for a reader right behind the producer."""
        names = {f"{self.pairs[tensor]}_Q", f"{self.pairs[tensor]}_DQ"}
        for nodes in self.before.values():
            moved = [node for node in nodes if node.name in names]
            if moved:
                nodes[:] = [node for node in nodes if node.name not in names]
                target[:0] = moved

    def shrink_tables(self) -> None:
        """Store embedding tables in int8 with one scale per row."""
        from onnx import TensorProto, helper, numpy_helper

        for node in list(self.model.graph.node):
            tensor = self.constants.get(node.input[0]) if node.op_type == "Gather" else None
            axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
            if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
                continue
            if axis != 0 or tensor.dims[0] * tensor.dims[1] < 1024:
                continue
            name, out = f"{tensor.name}_w8r", node.output[0]
            if name not in self.pairs:
                self.pairs[name] = name
                numbers, scales = _int8_weights(numpy_helper.to_array(tensor), 0)
                self._constant(f"{name}_int", numbers)
                self._constant(f"{name}_scale", scales[:, None])
            ids, prefix = node.input[1], f"{node.name}_w8r"
            node.input[0] = f"{name}_int"
            node.output[0] = f"{prefix}_int"
            self.after.setdefault(node.name, []).extend(
                [
                    helper.make_node(
                        "Cast", [f"{prefix}_int"], [f"{prefix}_f"], f"{prefix}_C", to=1
                    ),
                    helper.make_node(
                        "Gather", [f"{name}_scale", ids], [f"{prefix}_s"], f"{prefix}_G", axis=0
                    ),
                    helper.make_node("Mul", [f"{prefix}_f", f"{prefix}_s"], [out], f"{prefix}_M"),
                ]
            )

    def _flag(self, place: int) -> str:
        """Return the name of one layer's switch."""
        from onnx import helper

        if place not in self.flags:
            name = f"switch{place}"
            self.flags[place] = name
            self._constant(f"{name}_place", np.array(place, np.int64))
            self.head.append(
                helper.make_node("Gather", [SWITCHES, f"{name}_place"], [name], f"{name}_G", axis=0)
            )
        return self.flags[place]

    def _constant(self, name: str, value: NDArray[Any]) -> None:
        from onnx import numpy_helper

        if name not in self.constants:
            tensor = numpy_helper.from_array(value, name)
            self.constants[name] = tensor
            self.model.graph.initializer.append(tensor)

    def finish(self) -> Graph:
        """Put the nodes in order and drop what nobody reads any more."""
        from onnx import TensorProto, helper

        graph = self.model.graph
        nodes = [*self.head]
        for node in graph.node:
            nodes += [*self.before.get(node.name, ()), node, *self.after.get(node.name, ())]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(copies)
        if self.plan.switches:
            shape = [len(self.plan.layers)]
            graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, shape))
        drop_unused(self.model)
        return self.model


def _levels(low: float, high: float, is_symmetric: bool) -> tuple[float, int]:
    """Return scale and zero point of uint8 levels over a range that holds zero."""
    if is_symmetric:
        size = max(abs(low), abs(high), _TINY)
        return size / 127.0, 128
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, _TINY) / 255.0
    return step, round(float(np.clip(-low / step, 0, 255)))


def _int8_weights(
    values: NDArray[np.float32], axis: int | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    if axis is None:
        scale = np.float32(max(float(np.abs(values).max(initial=0.0)), _TINY) / 127.0)
        return np.clip(np.round(values / scale), -127, 127).astype(np.int8), np.asarray(scale)
    others = tuple(place for place in range(values.ndim) if place != axis)
    scales = (np.maximum(np.abs(values).max(axis=others), _TINY) / 127.0).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    numbers = np.clip(np.round(values / scales.reshape(shape)), -127, 127).astype(np.int8)
    return numbers, scales


def _users(model: Graph) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def _second(model: Graph, layer: Layer) -> list[str]:
    """Return the second activation of a product of two activations."""
    if layer.weight:
        return []
    node = next(node for node in model.graph.node if node.name == layer.name)
    return [node.input[1]]


def _outlet(tensor: str, users: Mapping[str, list[Any]]) -> str:
    """Return where an 8-bit result leaves: behind an activation that fuses, if there is one."""
    readers = users.get(tensor, [])
    if len(readers) == 1 and readers[0].op_type in _FUSED_AFTER:
        return str(readers[0].output[0])
    return tensor
