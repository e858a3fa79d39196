"""Fused operators for transformers: attention, layer norm and GELU as one kernel each.

ONNX Runtime fuses much of this by itself when it loads a model; its transformer optimizer also
finds attention. Whether the result is faster, and still the same, is for the caller to measure.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from fairlead.backends.onnx_graph import Graph, quiet_logging, read_graph, stored_bytes, write_graph
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires

__all__ = ["fuse_transformer"]

_LARGEST_BYTES = 2**31 - 1
_ATTENTION = {"Attention", "MultiHeadAttention"}


def fuse_transformer(path: Path) -> tuple[bytes, dict[str, int]] | None:
    """Fuse what the transformer optimizer finds.

    Args:
        path: An ONNX file.

    Returns:
        The model and how many fused operators of each kind it has that it had not before; None
        when nothing was found or the optimizer cannot read the graph.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    with requires("optimize", needed_by="fusing operators"):
        from onnxruntime.transformers import optimizer
    if stored_bytes(path) > _LARGEST_BYTES:
        return None
    graph = read_graph(path)
    if not _is_transformer(graph):
        return None
    before = _kinds(graph)
    try:
        # The optimizer prints what it fails to infer.
        with quiet_logging(), redirect_stdout(io.StringIO()):
            # 0 heads and 0 hidden: read them from the graph. ONNX Runtime does its own part when
            # the model is loaded, for the machine that it is loaded on.
            model = optimizer.optimize_by_fusion(
                graph, model_type="bert", num_heads=0, hidden_size=0
            ).model
    except Exception:  # noqa: BLE001 (an optimizer that stumbles over a graph only does not help)
        return None
    gained = {
        kind: count - before.get(kind, 0)
        for kind, count in _kinds(model).items()
        if count > before.get(kind, 0)
    }
    if not gained:
        return None
    try:
        return write_graph(model), gained
    except ModelError:
        return None


def _kinds(model: Graph) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.domain == "com.microsoft" or node.op_type == "LayerNormalization":
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def _is_transformer(model: Graph) -> bool:
    kinds = [node.op_type for node in model.graph.node]
    has_norms = "LayerNormalization" in kinds or kinds.count("ReduceMean") > 1
    return {"Softmax", "MatMul"} <= set(kinds) and has_norms and not _ATTENTION & set(kinds)
