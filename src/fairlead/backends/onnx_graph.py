"""ONNX graphs as data: read whole, brought into a shape that rewriting can rely on, written."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.files import scratch_folder

__all__ = [
    "check_graph",
    "fold_constants",
    "has_integer_matrices",
    "hoist_constants",
    "library_versions",
    "names_read",
    "onnx_versions",
    "parse_graph",
    "proto_bytes",
    "quiet_logging",
    "read_graph",
    "read_large",
    "sort_nodes",
    "stored_bytes",
    "upgrade_opset",
    "with_shapes",
    "write_graph",
]

Graph = Any
"""An `onnx.ModelProto`; the library is untyped."""

_OLDEST_OPSET = 11
_TARGET_OPSET = 13
_LARGEST_BYTES = 2**31 - 1
_HINT = "check it with `python -m onnx.checker`, or export it again"


def read_graph(path: Path) -> Graph:
    """Read a model with its external data.

    Raises:
        ModelError: The file is no ONNX model, or its external data is missing.
        MissingExtraError: onnx is not installed.
    """
    with requires("optimize", needed_by="rewriting a model"):
        import onnx
    try:
        return onnx.load(str(path), load_external_data=True)
    except Exception as exc:
        raise ModelError(f"{path} cannot be read: {_first_line(exc)}", hint=_HINT) from exc


def stored_bytes(path: Path) -> int:
    """Return the bytes of a model, those of the external data that lies beside it included."""
    external = path.with_name(path.name + ".data")
    extra = external.stat().st_size if external.is_file() else 0
    return path.stat().st_size + extra


def read_large(path: Path, *, leave: Callable[[Graph], Iterable[str]]) -> Graph:
    """Read a model and leave the weights that are large where they are.

    Args:
        path: An ONNX file with external data.
        leave: Graph → names of initialisers that stay outside; all others are read.

    Raises:
        ModelError: It cannot be read.
        MissingExtraError: onnx is not installed.
    """
    with requires("optimize", needed_by="rewriting a model"):
        import onnx
        from onnx import external_data_helper as outside
    try:
        model = onnx.load(str(path), load_external_data=False)
        left = set(leave(model))
        for tensor in model.graph.initializer:
            if tensor.name not in left and outside.uses_external_data(tensor):
                outside.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    except Exception as exc:
        raise ModelError(f"{path} cannot be read: {_first_line(exc)}", hint=_HINT) from exc
    return model


def write_graph(model: Graph) -> bytes:
    """Return the bytes of a model, its weights inside.

    Raises:
        ModelError: It is larger than the 2 GiB that one protobuf file may have.
    """
    size = proto_bytes(model)
    if size > _LARGEST_BYTES:
        raise ModelError(
            f"the rewritten model has {size:,} bytes, more than one file may have",
            hint="models above 2 GiB after the change are not supported",
        )
    return bytes(model.SerializeToString())


def proto_bytes(model: Graph) -> int:
    """Return the bytes of a model as one file; only what its weights take beyond 2 GiB.

    The library counts by writing, and what is larger than 2 GiB cannot be written.
    """
    from onnx import TensorProto, helper

    weights = sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL and tensor.data_type != TensorProto.STRING
    )
    return int(weights) if weights > _LARGEST_BYTES else int(model.ByteSize())


def check_graph(model: Graph) -> None:
    """Check a model against the ONNX specification.

    Raises:
        ModelError: It breaks the specification.
    """
    import onnx

    try:
        onnx.checker.check_model(model)
    except Exception as exc:
        raise ModelError(f"the model is not valid: {_first_line(exc)}", hint=_HINT) from exc


def upgrade_opset(model: Graph, *, oldest: int = _OLDEST_OPSET) -> Graph:
    """Return the model in an opset that 8-bit operators exist in; the same one when it is.

    Args:
        model: The graph.
        oldest: Opset from which on nothing needs to be done.

    Raises:
        ModelError: The opset is too old and the model cannot be converted.
    """
    found = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if found == 0 or found >= oldest:
        return model
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, max(oldest, _TARGET_OPSET))
    except Exception as exc:
        raise ModelError(
            f"opset {found} is too old and cannot be converted to {_TARGET_OPSET}: "
            f"{_first_line(exc)}",
            hint=f"export the model again with opset {_TARGET_OPSET} or newer",
        ) from exc


def with_shapes(model: Graph) -> Graph:
    """Return the model with the shapes that can be inferred, or as it is when none can be."""
    from onnx import shape_inference

    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 (shapes only help; every kind of failure means there are none)
        return model


def sort_nodes(model: Graph) -> bool:
    """Put the nodes of the main graph in an order in which each reads what came before, in place.

    ONNX Runtime runs a graph in any order, and some converters leave them unsorted; the ONNX
    specification and other readers want them sorted.

    Returns:
        Whether anything was moved; a graph with a cycle stays as it is.
    """
    nodes = list(model.graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in names_read(node) if name in makers} for node in nodes]
    if all(max(need, default=-1) < place for place, need in enumerate(needs)):
        return False
    readers: dict[int, list[int]] = {}
    for place, need in enumerate(needs):
        for other in need:
            readers.setdefault(other, []).append(place)
    left = [len(need) for need in needs]
    ready = [place for place, count in enumerate(left) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for place in readers.get(order[-1], ()):
            left[place] -= 1
            if not left[place]:
                heapq.heappush(ready, place)
    if len(order) < len(nodes):
        return False
    copies = [type(nodes[0]).FromString(nodes[place].SerializeToString()) for place in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return True


def names_read(node: Any) -> Iterator[str]:  # noqa: ANN401 (untyped library)
    """Yield what a node reads, within its own graphs too."""
    yield from node.input
    for item in node.attribute:
        for graph in (*([item.g] if item.HasField("g") else []), *item.graphs):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (output.name for output in graph.output)


def hoist_constants(model: Graph) -> Graph:
    """Return a copy whose `Constant` nodes are initialisers, where rewriting looks for weights."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    outputs = {item.name for item in graph.output}
    kept = []
    for node in graph.node:
        value = next((item for item in node.attribute if item.name == "value"), None)
        if node.op_type != "Constant" or value is None or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value.t)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    if len(kept) != len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)
    return copy


def fold_constants(model: Graph) -> Graph:
    """Return the model after ONNX Runtime's basic rewriting, or as it is when that fails.

    Weights that are computed from constants (cast, transposed, reshaped) become plain ones.
    """
    with requires("optimize", needed_by="rewriting a model"):
        import onnx
        import onnxruntime as ort
    with scratch_folder("fold") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folder / "folded.onnx")
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return onnx.load(options.optimized_model_filepath)
        except Exception:  # noqa: BLE001 (folding only helps; the caller goes on without)
            return model


def has_integer_matrices(path: Path, *, min_weights: int) -> bool:
    """Tell whether a model stores matrices in integers of 8 or fewer bits, as quantization does.

    Args:
        path: An ONNX file.
        min_weights: Smallest matrix that counts, in weights.

    Raises:
        ModelError: The file is not a valid model.
    """
    import onnx

    names = ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
    kinds = {getattr(onnx.TensorProto, name) for name in names if hasattr(onnx.TensorProto, name)}
    return any(
        tensor.data_type in kinds
        and len(tensor.dims) >= 2
        and math.prod(tensor.dims) >= min_weights
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
    )


def parse_graph(data: bytes) -> Graph:
    """Return the model that `write_graph` gave the bytes of."""
    import onnx

    return onnx.load_model_from_string(data)


def library_versions(*names: str) -> dict[str, str]:
    """Return the versions of those libraries that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def onnx_versions() -> dict[str, str]:
    """Return the versions of the libraries that rewrite and run models."""
    return {name: version(name) for name in ("onnx", "onnxruntime")}


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep a library that talks through the root logger silent while the block runs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
