"""The layers of an ONNX graph: matrix products and convolutions, and what flows between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairlead.backends.onnx_graph import Graph, names_read, write_graph
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Array, Feeds, first_dimension

__all__ = [
    "Layer",
    "control_flow",
    "copy_graph",
    "drop_unused",
    "initializers",
    "layers_of",
    "name_nodes",
    "run_taps",
    "unknown_operators",
]

_WEIGHTED = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1}
_FLOAT = 1  # onnx.TensorProto.FLOAT
_STANDARD_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


@dataclass(frozen=True)
class Layer:
    """One matrix product or convolution.

    Attributes:
        name: Name of its node.
        operator: `MatMul`, `Gemm`, `Conv` or `ConvTranspose`.
        source: Tensor that it takes.
        weight: Initialiser that it multiplies with; empty for a product of two activations.
        output: Tensor that it gives.
        shape: Shape of the weight; empty without one.
    """

    name: str
    operator: str
    source: str
    weight: str
    output: str
    shape: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """Weights in it; 0 without any."""
        return int(np.prod(self.shape)) if self.shape else 0


def copy_graph(model: Graph) -> Graph:
    """Return a deep copy of a model."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def name_nodes(model: Graph) -> Graph:
    """Return a copy in which every node has a name of its own."""
    copy, seen = copy_graph(model), set[str]()
    for place, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{place}"
        while node.name in seen:
            node.name += "_"
        seen.add(node.name)
    return copy


def initializers(model: Graph) -> dict[str, Any]:
    """Return name → initialiser of the main graph."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def layers_of(model: Graph) -> tuple[Layer, ...]:
    """Return the matrix products and convolutions of the main graph, in order of execution."""
    constants = initializers(model)
    found = []
    for node in model.graph.node:
        place = _WEIGHTED.get(node.op_type)
        if place is None or node.domain not in ("", "ai.onnx") or len(node.input) <= place:
            continue
        tensor = constants.get(node.input[place])
        dims = () if tensor is None or len(tensor.dims) < 2 else tuple(tensor.dims)
        if tensor is not None and dims and tensor.data_type != _FLOAT:
            continue
        found.append(
            Layer(
                name=node.name,
                operator=node.op_type,
                source=node.input[0],
                weight=node.input[place] if dims else "",
                output=node.output[0],
                shape=dims,
            )
        )
    return tuple(found)


def control_flow(model: Graph) -> tuple[str, ...]:
    """Return the operators of the main graph that hold graphs of their own, sorted."""
    kinds = {
        node.op_type
        for node in model.graph.node
        for item in node.attribute
        if item.HasField("g") or item.graphs
    }
    return tuple(sorted(kinds))


def unknown_operators(model: Graph) -> tuple[str, ...]:
    """Return operators of domains that neither ONNX nor ONNX Runtime brings, sorted."""
    kinds = {
        f"{node.domain}:{node.op_type}"
        for node in model.graph.node
        if node.domain not in _STANDARD_DOMAINS
    }
    return tuple(sorted(kinds))


def drop_unused(model: Graph) -> None:
    """Remove nodes and initialisers of the main graph that no output needs, in place."""
    graph = model.graph
    needed = {item.name for item in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_read(node))
    nodes = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
    tensors = [t for t in graph.initializer if t.name in needed]
    copies = [type(t).FromString(t.SerializeToString()) for t in tensors]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(copies)


def run_taps(
    model: Graph, names: Iterable[str], feeds: Feeds, *, batch_rows: int = 16
) -> Iterator[dict[str, Array]]:
    """Run a model and hand out tensors between its layers, batch by batch.

    Args:
        model: The graph; it is not changed.
        names: Tensors to read; those that are not computed are left out.
        feeds: One array per input, first dimension the rows.
        batch_rows: Rows per run.

    Yields:
        Name → value, for every batch.

    Raises:
        ModelError: ONNX Runtime cannot run it.
    """
    with requires("optimize", needed_by="looking into a model"):
        import onnx
        import onnxruntime as ort
    copy = copy_graph(model)
    made = {name for node in copy.graph.node for name in node.output}
    given = {item.name for item in copy.graph.input}
    there = {item.name for item in copy.graph.output}
    wanted = list(dict.fromkeys(name for name in names if name in made))
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            write_graph(copy), options, providers=["CPUExecutionProvider"]
        )
        for batch in _batches(session, {k: v for k, v in feeds.items() if k in given}, batch_rows):
            yield dict(zip(wanted, session.run(wanted, batch) if wanted else [], strict=True))
    except ModelError:
        raise
    except Exception as exc:
        raise ModelError(
            f"the model cannot be run layer by layer: {str(exc).splitlines()[0][:300]}",
            hint="check it with `python -m onnx.checker`, or export it again",
        ) from exc


def _batches(session: Any, feeds: Feeds, batch_rows: int) -> Iterator[Mapping[str, Array]]:  # noqa: ANN401
    sizes = [item.shape[0] for item in session.get_inputs() if item.shape]
    fixed = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    size, n_rows = fixed or batch_rows, first_dimension(feeds)
    for start in range(0, n_rows, size):
        places = np.arange(start, start + size) % n_rows
        if not fixed:
            places = np.arange(start, min(start + size, n_rows))
        yield {name: array[places] for name, array in feeds.items()}
