"""Low-rank factorisation of the weight matrices of ONNX models.

A matrix `W` of shape (k, n) becomes `A · B` of shapes (k, r) and (r, n). `A · B` is the best
product of rank r for the inputs that were seen, not for arbitrary ones: it minimises the mean of
`|x W - x A B|²` (truncation-aware whitening; Wang et al., SVD-LLM, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph, check_graph, write_graph
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.ports import Array, Feeds, first_dimension

__all__ = ["Factorisation", "factorise", "find_factorisations", "replace_matrices"]

_BATCH_ROWS = 64
_RIDGE = 1e-2
"""Weight of directions that did not occur in the rows, relative to the mean direction."""
_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16")


@dataclass(frozen=True)
class Factorisation:
    """One weight matrix, cut open.

    Attributes:
        name: Name of the initialiser.
        shape: Its shape as stored.
        is_transposed: Whether it is stored as (n, k).
        left: Shape (k, full), float64.
        right: Shape (full, n), float64; `left @ right` is the matrix.
        lost: Share of the output's energy that is lost at rank r, shape (full + 1,), falling
            from 1 to 0.
    """

    name: str
    shape: tuple[int, int]
    is_transposed: bool
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    lost: NDArray[np.float64]

    @property
    def n_weights(self) -> int:
        """Weights of the matrix."""
        return self.shape[0] * self.shape[1]

    def weights_at(self, rank: int) -> int:
        """Return the weights of the two factors of a rank."""
        return rank * (self.shape[0] + self.shape[1])

    def rank_for(self, loss: float) -> int | None:
        """Return the smallest rank that loses at most this share, or None when it saves nothing.

        Args:
            loss: Share of the output's energy, 0 to 1.
        """
        rank = max(int(np.argmax(self.lost <= loss)), 1)
        return rank if self.weights_at(rank) < self.n_weights else None


def find_factorisations(
    model: Graph, feeds: Feeds, *, min_weights: int
) -> tuple[Factorisation, ...]:
    """Factorise every large matrix that is the right side of a MatMul or Gemm.

    Args:
        model: A graph whose constants are initialisers; it is not changed.
        feeds: Rows that are typical, one array per input; their activations decide what counts.
        min_weights: Smallest matrix to look at, in weights.

    Raises:
        ModelError: The model cannot be run on the rows.
    """
    matrices = _matrices(model, min_weights)
    if not matrices:
        return ()
    moments = _input_moments(model, feeds, {use.input[0] for _, uses in matrices for use in uses})
    found = []
    for tensor, uses in matrices:
        is_transposed = _flag(uses[0], "transB")
        moment = sum(moments[use.input[0]] for use in uses)
        found.append(factorise(tensor.name, _array(tensor), is_transposed, np.asarray(moment)))
    return tuple(found)


def _matrices(model: Graph, min_weights: int) -> list[tuple[Any, list[Any]]]:
    """Return the matrices that nothing else needs, with the nodes that use them."""
    import onnx

    kinds = {getattr(onnx.TensorProto, kind) for kind in _FLOATS}
    users: dict[str, list[Any]] = {}
    for node in _all_nodes(model.graph):
        for name in node.input:
            users.setdefault(name, []).append(node)
    top_level = {node.output[0] for node in model.graph.node if node.output}
    kept = {item.name for item in model.graph.output}
    found = []
    for tensor in model.graph.initializer:
        uses = users.get(tensor.name, [])
        is_large = len(tensor.dims) == 2 and tensor.dims[0] * tensor.dims[1] >= min_weights
        if not (is_large and uses and tensor.data_type in kinds) or tensor.name in kept:
            continue
        if all(_is_product(node, tensor.name) and node.output[0] in top_level for node in uses):
            same = {_flag(node, "transB") for node in uses}
            if len(same) == 1:
                found.append((tensor, uses))
    return found


def _all_nodes(graph: Any) -> Iterator[Any]:  # noqa: ANN401 (untyped library)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _all_nodes(inner)


def _is_product(node: Any, name: str) -> bool:  # noqa: ANN401 (untyped library)
    inputs = list(node.input)
    is_right_side = len(inputs) >= 2 and inputs[1] == name and inputs.count(name) == 1
    if node.op_type == "MatMul":
        return is_right_side and node.domain in ("", "ai.onnx")
    return node.op_type == "Gemm" and is_right_side and not _flag(node, "transA")


def _flag(node: Any, name: str) -> bool:  # noqa: ANN401 (untyped library)
    return any(item.name == name and item.i for item in node.attribute)


def _array(tensor: Any) -> Array:  # noqa: ANN401 (untyped library)
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def _input_moments(model: Graph, feeds: Feeds, names: set[str]) -> dict[str, NDArray[np.float64]]:
    """Return the second moment of each tensor over the rows, shape (k, k)."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {item.name for item in probe.graph.output}
    for name in sorted(names - known - set(feeds)):
        probe.graph.output.append(onnx.ValueInfoProto(name=name))
    runner = OnnxRunner(write_graph(probe))
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    try:
        for batch in _batches(runner, feeds):
            seen = {**runner.run(batch), **batch}
            for name in names:
                rows = seen[name].reshape(-1, seen[name].shape[-1]).astype(np.float64)
                rows = rows[np.isfinite(rows).all(axis=1)]
                sums[name] = sums[name] + rows.T @ rows
                counts[name] += len(rows)
    finally:
        runner.close()
    return {name: np.asarray(sums[name]) / max(counts[name], 1) for name in names}


def _batches(runner: OnnxRunner, feeds: Feeds) -> Iterator[dict[str, Array]]:
    shapes = (spec.shape for spec in runner.signature.inputs)
    fixed = next((shape[0] for shape in shapes if shape and shape[0] > 0), None)
    size = fixed or _BATCH_ROWS
    n_rows = first_dimension(feeds)
    for start in range(0, n_rows - (size - 1 if fixed else 0), size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def factorise(
    name: str, matrix: Array, is_transposed: bool, moment: NDArray[np.float64]
) -> Factorisation:
    """Cut a matrix open so that any rank can be read off.

    Args:
        name: Name of the initialiser.
        matrix: As stored, shape (k, n), or (n, k) when transposed.
        is_transposed: Whether it is stored as (n, k).
        moment: Second moment of the inputs, shape (k, k), float64.
    """
    weights = matrix.astype(np.float64)
    weights = weights.T if is_transposed else weights
    size = len(weights)
    ridge = _RIDGE * float(np.trace(moment)) / size or 1.0
    values, vectors = np.linalg.eigh(moment + ridge * np.eye(size))
    roots = np.sqrt(np.maximum(values, ridge / 2))
    left, singular, right = np.linalg.svd((vectors * roots).T @ weights, full_matrices=False)
    energy = singular**2
    total = float(energy.sum()) or 1.0
    tail = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    return Factorisation(
        name=name,
        shape=(int(matrix.shape[0]), int(matrix.shape[1])),
        is_transposed=is_transposed,
        left=(vectors / roots) @ (left * np.sqrt(singular)),
        right=np.sqrt(singular)[:, None] * right,
        lost=np.asarray(tail / total),
    )


def replace_matrices(
    model: Graph, factorisations: tuple[Factorisation, ...], ranks: Mapping[str, int]
) -> bytes:
    """Return the model with some matrices replaced by two factors.

    Args:
        model: The graph the factorisations were found in; it is not changed.
        factorisations: What `find_factorisations` returned.
        ranks: Name of the matrix → rank; the others stay whole.

    Raises:
        ModelError: The result breaks the ONNX specification.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    chosen = {item.name: item for item in factorisations if item.name in ranks}
    nodes: list[Any] = []
    for node in copy.graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        is_chosen = name in chosen and _is_product(node, name)
        nodes.extend(_two_products(node, name) if is_chosen else [node])
    tensors = []
    for tensor in copy.graph.initializer:
        item = chosen.get(tensor.name)
        tensors.extend([tensor] if item is None else _factors(tensor, item, ranks[item.name]))
    _replace(copy.graph.node, nodes)
    _replace(copy.graph.initializer, tensors)
    _replace(copy.graph.input, [item for item in copy.graph.input if item.name not in chosen])
    # Before version 4 every initialiser had to be an input as well.
    copy.ir_version = max(copy.ir_version, 4)
    check_graph(copy)
    return write_graph(copy)


def _replace(field: Any, items: list[Any]) -> None:  # noqa: ANN401 (untyped library)
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _names(name: str) -> tuple[str, str]:
    return f"{name}/low_rank_in", f"{name}/low_rank_out"


def _two_products(node: Any, name: str) -> list[Any]:  # noqa: ANN401 (untyped library)
    """Return two nodes for `x · W`; scale, bias and the name of the output stay with the second."""
    import onnx

    inner, outer = _names(name)
    middle = f"{node.output[0]}/low_rank"
    first = onnx.helper.make_node("MatMul", [node.input[0], inner], [middle], name=middle)
    second = onnx.NodeProto()
    second.CopyFrom(node)
    second.input[0], second.input[1] = middle, outer
    return [first, second]


def _factors(tensor: Any, item: Factorisation, rank: int) -> list[Any]:  # noqa: ANN401
    from onnx import numpy_helper

    dtype = _array(tensor).dtype
    inner, outer = _names(item.name)
    right = item.right[:rank].T if item.is_transposed else item.right[:rank]
    return [
        numpy_helper.from_array(np.ascontiguousarray(item.left[:, :rank], dtype), inner),
        numpy_helper.from_array(np.ascontiguousarray(right, dtype), outer),
    ]
