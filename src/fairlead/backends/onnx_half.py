"""Half precision: fp16 arithmetic with layers left in fp32, and bf16 or fp16 storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from fairlead.backends.onnx_graph import Graph, quiet_logging
from fairlead.backends.onnx_layers import copy_graph, run_taps
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Feeds

__all__ = ["overflowing_nodes", "store_half", "to_fp16"]

_LARGEST_FP16 = 65504.0
_MOST_LOSS = 0.01
_ROOM = 4.0
"""A value within this factor of the largest fp16 number counts as an overflow to come."""
_FLOAT = 1
_SENSITIVE = ("LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Exp", "Pow", "Erf")


def overflowing_nodes(model: Graph, feeds: Feeds, *, batch_rows: int = 16) -> tuple[str, ...]:
    """Return the nodes that make or read values which fp16 cannot hold, seen on some rows.

    Args:
        model: A graph in fp32, nodes named.
        feeds: Rows to look at, one array per input.
        batch_rows: Rows per run.

    Raises:
        ModelError: The model cannot be run.
    """
    peaks: dict[str, float] = {}
    names = [name for node in model.graph.node for name in node.output if name]
    for values in run_taps(model, names, feeds, batch_rows=batch_rows):
        for name, array in values.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
                sizes = np.abs(array[np.isfinite(array)])
                peaks[name] = max(peaks.get(name, 0.0), float(sizes.max(initial=0.0)))
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT:
            peaks[tensor.name] = _peak(tensor)
    large = {name for name, peak in peaks.items() if peak * _ROOM > _LARGEST_FP16}
    return tuple(
        node.name for node in model.graph.node if large.intersection((*node.input, *node.output))
    )


def _peak(tensor: Any) -> float:  # noqa: ANN401 (untyped library)
    from onnx import numpy_helper

    return float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))


def to_fp16(model: Graph, *, keep: Iterable[str] = (), keep_sensitive: bool = False) -> Graph:
    """Return a copy that computes in fp16; inputs and outputs keep their types.

    Args:
        model: A graph in fp32, nodes named.
        keep: Nodes that stay in fp32.
        keep_sensitive: Whether normalisations, softmax and sums stay in fp32 too.

    Raises:
        ModelError: ONNX Runtime's converter cannot convert it.
    """
    with requires("optimize", needed_by="conversion to fp16"):
        from onnxruntime.transformers import float16
    operators = [*float16.DEFAULT_OP_BLOCK_LIST, *(_SENSITIVE if keep_sensitive else ())]
    copy = copy_graph(model)
    del copy.graph.value_info[:]
    try:
        with quiet_logging():
            return float16.convert_float_to_float16(
                copy,
                keep_io_types=True,
                op_block_list=operators,
                node_block_list=list(keep),
            )
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        raise ModelError(
            f"the model cannot be converted to fp16: {reason}",
            hint="export it again with opset 17 or newer",
        ) from exc


def store_half(
    model: Graph, dtype: Literal["fp16", "bf16"], *, smallest: int = 256
) -> tuple[Graph, int]:
    """Return a copy whose large weights are stored in half precision and computed with in fp32.

    The arithmetic and its speed stay; only the bytes halve. Weights that are too large or too
    small for fp16 stay as they are.

    Args:
        model: A graph in fp32.
        dtype: `bf16` keeps the range of fp32, `fp16` has more digits.
        smallest: Weights of fewer values stay.

    Returns:
        The copy, and how many weights were stored.
    """
    from onnx import TensorProto, helper

    kind = TensorProto.BFLOAT16 if dtype == "bf16" else TensorProto.FLOAT16
    copy, casts, stored = copy_graph(model), [], 0
    kept = []
    for tensor in copy.graph.initializer:
        values = int(np.prod(tensor.dims)) if tensor.dims else 1
        is_float = tensor.data_type == _FLOAT and values >= smallest
        if not is_float or (dtype == "fp16" and _loses(tensor)):
            kept.append(type(tensor).FromString(tensor.SerializeToString()))
            continue
        name = f"{tensor.name}_{dtype}"
        kept.append(_half(tensor, name, kind))
        casts.append(helper.make_node("Cast", [name], [tensor.name], f"{name}_Cast", to=_FLOAT))
        stored += values
    nodes = [type(n).FromString(n.SerializeToString()) for n in (*casts, *copy.graph.node)]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(kept)
    return copy, stored


def _loses(tensor: Any) -> bool:  # noqa: ANN401 (untyped library)
    """Whether fp16 overflows on a weight, or rounds more than a hundredth of it away."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16).astype(np.float64)
    if not np.isfinite(rounded).all():
        return True
    size = float(np.linalg.norm(values))
    return float(np.linalg.norm(values - rounded)) > _MOST_LOSS * size


def _half(tensor: Any, name: str, kind: int) -> Any:  # noqa: ANN401
    from onnx import TensorProto, numpy_helper

    values = np.asarray(numpy_helper.to_array(tensor), np.float32)
    made = TensorProto(name=name, data_type=kind, dims=list(tensor.dims))
    if kind == TensorProto.FLOAT16:
        made.raw_data = values.astype(np.float16).tobytes()
        return made
    # Round to the nearest even of the upper half of the bits.
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    made.raw_data = rounded.astype(np.uint16).tobytes()
    return made
