"""Weights alone in 4 or 8 bits, block by block, as ONNX Runtime's `MatMulNBits` reads them.

Three ways to round: to the nearest level (`rtn`), with the zero points that minimise a robust
error of the weights (`hqq`: Badri & Shaji, 2023), or column by column with the error pushed onto
the columns that are not rounded yet, weighed by what flows through them (`gptq`: Frantar et al.,
ICLR 2023). Written with numpy, because the library's own need torch or accept no calibration set
of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph
from fairlead.backends.onnx_layers import Layer, copy_graph, drop_unused, initializers, layers_of

__all__ = ["Rounding", "block_quantize", "blockable_layers"]

Rounding = Literal["rtn", "hqq", "gptq"]
Floats = NDArray[np.float32]

_HQQ_STEPS = 20
_DAMPING = 0.01
_INT8_COMPUTE = 4
"""`accuracy_level` of MatMulNBits that multiplies in int8."""


@dataclass(frozen=True)
class _Blocks:
    """A weight in levels: `w ≈ (levels - zeros) * scales`, all of shape (n_out, n_blocks, size)."""

    levels: NDArray[np.uint8]
    scales: Floats
    zeros: NDArray[np.uint8]


def blockable_layers(model: Graph, *, block: int) -> tuple[Layer, ...]:
    """Return the layers whose weights can be stored in blocks: plain products, large enough."""
    nodes = {node.name: node for node in model.graph.node}
    return tuple(
        layer
        for layer in layers_of(model)
        if len(layer.shape) == 2
        and _is_plain(nodes[layer.name])
        and _rows_in(nodes[layer.name], layer) >= block
    )


def block_quantize(
    model: Graph,
    layers: Iterable[str],
    *,
    bits: Literal[4, 8] = 4,
    block: int = 32,
    rounding: Rounding = "rtn",
    inputs: Mapping[str, Floats] | None = None,
    folder: Path | None = None,
) -> Graph:
    """Return a copy of the model whose layers read their weights from blocks of few bits.

    Args:
        model: A prepared graph in fp32.
        layers: Names of the layers, from `blockable_layers`.
        bits: Width of a weight.
        block: Weights that share a scale, a power of two, at least 16.
        rounding: How levels are chosen.
        inputs: Layer → rows that flow into it, shape (n, n_in); needed by `gptq` only.
        folder: Where weights lie that are not in the graph; they are read one by one.
    """
    copy = copy_graph(model)
    constants, chosen = initializers(copy), set(layers)
    nodes = {node.name: node for node in copy.graph.node}
    replacements: dict[str, list[Any]] = {}
    for layer in layers_of(copy):
        if layer.name not in chosen:
            continue
        node = nodes[layer.name]
        rows = None if inputs is None else inputs.get(layer.name)
        matrix = _matrix(node, constants[layer.weight], folder)
        found = _round(matrix, bits, block, rounding, rows)
        replacements[layer.name] = _write(copy, node, found, matrix.shape, bits, block)
    written = [n for node in copy.graph.node for n in replacements.get(node.name, [node])]
    copies = [type(node).FromString(node.SerializeToString()) for node in written]
    del copy.graph.node[:]
    copy.graph.node.extend(copies)
    if not any(item.domain == "com.microsoft" for item in copy.opset_import):
        copy.opset_import.add(domain="com.microsoft", version=1)
    drop_unused(copy)
    return copy


def _is_plain(node: Any) -> bool:  # noqa: ANN401 (untyped library)
    if node.op_type == "MatMul":
        return True
    values = {item.name: item for item in node.attribute}
    scaled = any(name in values and values[name].f != 1.0 for name in ("alpha", "beta"))
    is_turned = "transA" in values and bool(values["transA"].i)
    return node.op_type == "Gemm" and not scaled and not is_turned


def _rows_in(node: Any, layer: Layer) -> int:  # noqa: ANN401
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    return int(layer.shape[1] if turned else layer.shape[0])


def _matrix(node: Any, tensor: Any, folder: Path | None) -> Floats:  # noqa: ANN401
    """Return a weight as (n_out, n_in)."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        # Reading fills the tensor; a copy of it is thrown away, and the graph stays small.
        outside = TensorProto()
        outside.CopyFrom(tensor)
        tensor = outside
    base = "" if folder is None else str(folder)
    values = np.asarray(numpy_helper.to_array(tensor, base_dir=base), np.float32)
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    return values if turned else np.ascontiguousarray(values.T)


def _round(
    matrix: Floats, bits: int, block: int, rounding: Rounding, rows: Floats | None
) -> _Blocks:
    n_out, n_in = matrix.shape
    n_blocks = -(-n_in // block)
    padded = np.zeros((n_out, n_blocks * block), np.float32)
    padded[:, :n_in] = matrix
    shaped = padded.reshape(n_out, n_blocks, block)
    scales, zeros = _scales(shaped, bits)
    if rounding == "hqq":
        zeros = _hqq_zeros(shaped, scales, zeros, bits)
    top = 2**bits - 1
    if rounding == "gptq" and rows is not None:
        levels = _gptq(padded, scales, zeros, rows, block, top)
    else:
        levels = np.clip(np.round(shaped / scales + zeros), 0, top)
    return _Blocks(levels.astype(np.uint8), scales, zeros.astype(np.uint8))


def _scales(shaped: Floats, bits: int) -> tuple[Floats, Floats]:
    """Return scale and zero point per block; zero is always a level."""
    low = np.minimum(shaped.min(axis=2, keepdims=True), 0)
    high = np.maximum(shaped.max(axis=2, keepdims=True), 0)
    top = 2**bits - 1
    scales = np.maximum((high - low) / top, 1e-12).astype(np.float32)
    return scales, np.clip(np.round(-low / scales), 0, top).astype(np.float32)


def _hqq_zeros(shaped: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    """Move the zero points so that an error norm below one is least, by half-quadratic steps."""
    top, beta, norm = 2**bits - 1, 10.0, 0.7
    best, best_error = zeros, np.full(zeros.shape, np.inf, np.float32)
    current = zeros
    for _ in range(_HQQ_STEPS):
        levels = np.clip(np.round(shaped / scales + current), 0, top)
        rest = shaped - (levels - current) * scales
        error = np.abs(rest).mean(axis=2, keepdims=True)
        rounded = np.round(current)
        is_better = error < best_error
        best = np.where(is_better, rounded, best)
        best_error = np.where(is_better, error, best_error)
        sizes = np.abs(rest)
        shrunk = np.maximum(sizes - (sizes + 1e-8) ** (norm - 1) / beta, 0) * np.sign(rest)
        current = np.mean(levels - (shaped - shrunk) / scales, axis=2, keepdims=True)
        current = np.clip(current, 0, top).astype(np.float32)
        beta *= 1.01
    return np.clip(best, 0, top).astype(np.float32)


def _gptq(
    padded: Floats, scales: Floats, zeros: Floats, rows: Floats, block: int, top: int
) -> Floats:
    """Round input by input and spread the error over the inputs that are still open."""
    n_in = padded.shape[1]
    flow = np.zeros((len(rows), n_in), np.float64)
    flow[:, : rows.shape[1]] = rows
    hessian = flow.T @ flow * (2.0 / max(len(rows), 1))
    idle = np.diag(hessian) == 0
    hessian[idle, idle] = 1.0
    hessian[np.diag_indices(n_in)] += _DAMPING * float(np.mean(np.diag(hessian)))
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    open_weights = padded.astype(np.float64)
    levels = np.zeros(padded.shape, np.float32)
    for place in range(n_in):
        scale, zero = scales[:, place // block, 0], zeros[:, place // block, 0]
        column = open_weights[:, place]
        levels[:, place] = np.clip(np.round(column / scale + zero), 0, top)
        error = (column - (levels[:, place] - zero) * scale) / factor[place, place]
        open_weights[:, place + 1 :] -= np.outer(error, factor[place, place + 1 :])
    return levels.reshape(scales.shape[0], scales.shape[1], block)


def _write(
    model: Graph,
    node: Any,  # noqa: ANN401
    blocks: _Blocks,
    shape: tuple[int, int],
    bits: int,
    block: int,
) -> list[Any]:
    """Store the blocks and return the nodes that take the layer's place."""
    from onnx import helper, numpy_helper

    name, (n_out, n_in) = f"{node.name}_b{bits}", shape
    packed = blocks.levels if bits == 8 else _pack(blocks.levels)
    zeros = blocks.zeros[:, :, 0] if bits == 8 else _pack(blocks.zeros[:, :, 0])
    parts = {
        f"{name}_levels": packed,
        f"{name}_scales": blocks.scales[:, :, 0],
        f"{name}_zeros": zeros,
    }
    for part, values in parts.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), part))
    has_bias = node.op_type == "Gemm" and len(node.input) > 2 and bool(node.input[2])
    product = f"{name}_product" if has_bias else node.output[0]
    multiply = helper.make_node(
        "MatMulNBits",
        [node.input[0], *parts],
        [product],
        node.name,
        domain="com.microsoft",
        K=n_in,
        N=n_out,
        bits=bits,
        block_size=block,
        accuracy_level=_INT8_COMPUTE,
    )
    if not has_bias:
        return [multiply]
    return [multiply, helper.make_node("Add", [product, node.input[2]], node.output, f"{name}_Add")]


def _pack(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two 4-bit numbers into one byte along the last axis, the first one low."""
    if levels.shape[-1] % 2:
        pad = [(0, 0)] * (levels.ndim - 1) + [(0, 1)]
        levels = np.pad(levels, pad, constant_values=8)
    return np.asarray(levels[..., ::2] | (levels[..., 1::2] << 4), np.uint8)
