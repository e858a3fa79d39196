"""Operator by operator: how long each one takes, and what it computes and moves.

Times come from ONNX Runtime's profiler. Arithmetic follows from the shapes that were seen and from
the graph as ONNX Runtime rewrote it, where weights still stand beside their operators.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.machine_peaks import measure_peaks
from fairlead.backends.onnx_graph import stored_bytes
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.files import scratch_folder
from fairlead.core.ports import Feeds, first_dimension
from fairlead.core.signature import Signature, conform
from fairlead.measure.roofline import OperatorCost, Roofline

__all__ = ["CONVOLUTIONS", "MATRIX_PRODUCTS", "RECURRENT", "profile_operators"]

MATRIX_PRODUCTS = frozenset({
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulNBits",
})  # fmt: skip
CONVOLUTIONS = frozenset({
    "Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose",
})  # fmt: skip
RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
_ATTENTION = frozenset({"Attention", "QAttention"})
_INT8 = frozenset({
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm",
    "QLinearConv", "ConvInteger", "QAttention", "DynamicQuantizeLSTM",
})  # fmt: skip
_MOVES = frozenset({
    "Reshape", "Transpose", "Concat", "Slice", "Gather", "Unsqueeze", "Squeeze", "Shape", "Cast",
    "Expand", "Identity", "Flatten", "Split", "ConstantOfShape", "Range", "Pad", "ReorderInput",
    "ReorderOutput", "Where", "Equal", "And",
})  # fmt: skip
_PER_VALUE = {"Softmax": 5, "LayerNormalization": 8, "SkipLayerNormalization": 9, "BiasGelu": 12,
              "Gelu": 12, "FastGelu": 12, "Erf": 10, "Tanh": 10, "Sigmoid": 8, "Exp": 8,
              "BatchNormalization": 2}  # fmt: skip
_MOST_RUNS = 30
_LARGEST_BYTES = 2**31 - 1
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class _Node:
    """What the rewritten graph says about one operator."""

    weights: list[tuple[int, ...]] = field(default_factory=list)
    weight_bytes: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)


def profile_operators(
    model: Path, feeds: Feeds, runtime: RuntimeSettings, *, budget_ms: float = 500.0
) -> Roofline:
    """Run a batch several times under the profiler, on one thread.

    Args:
        model: An ONNX file.
        feeds: One batch, one array per input.
        runtime: Whose graph level is used; always on the CPU.
        budget_ms: About how long to run.

    Returns:
        Every operator with its lower quartile of the times, under the roof of this machine.

    Raises:
        ModelError: The model cannot be run.
        MissingExtraError: ONNX Runtime or onnx is not installed.
    """
    with requires("optimize", needed_by="profiling a model"):
        import onnxruntime as ort
    with scratch_folder("profile") as folder:
        try:
            events, runs = _record(ort, model, feeds, runtime, folder, budget_ms)
        except Exception as exc:
            raise ModelError(
                f"the model cannot be profiled: {str(exc).splitlines()[0][:200]}",
                hint="check it with `python -m onnx.checker`, or export it again",
            ) from exc
        nodes = _nodes(folder / "rewritten.onnx")
    return Roofline(measure_peaks(), _operators(events, nodes, runs), first_dimension(feeds))


def _record(
    ort: Any,  # noqa: ANN401 (untyped library)
    model: Path,
    feeds: Feeds,
    runtime: RuntimeSettings,
    folder: Path,
    budget_ms: float,
) -> tuple[list[dict[str, Any]], int]:
    import time

    from fairlead.backends.onnxruntime import signature_of

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "run")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = {
        "disabled": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[runtime.graph_optimization]
    if stored_bytes(model) < _LARGEST_BYTES:
        options.optimized_model_filepath = str(folder / "rewritten.onnx")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    signature: Signature = signature_of(session)
    ready = conform(feeds, signature)
    start, runs = time.perf_counter(), 0
    while runs < 3 or (runs < _MOST_RUNS and (time.perf_counter() - start) * 1e3 < budget_ms):
        session.run(None, ready)
        runs += 1
    path = Path(session.end_profiling())
    return json.loads(path.read_text()), runs


def _nodes(path: Path) -> dict[str, _Node]:
    """Read what stands beside each operator of the rewritten graph; nothing without one."""
    import onnx

    if not path.is_file():
        return {}
    graph = onnx.load(str(path), load_external_data=False).graph
    shapes = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        tensors = [shapes[name] for name in node.input if name in shapes]
        found[node.name] = _Node(
            weights=[tuple(tensor.dims) for tensor in tensors],
            weight_bytes=sum(_bytes_of(tensor) for tensor in tensors),
            attributes={
                item.name: onnx.helper.get_attribute_value(item)
                for item in node.attribute
                if item.type == onnx.AttributeProto.INT
            },
        )
    return found


def _bytes_of(tensor: Any) -> int:  # noqa: ANN401 (untyped library)
    from onnx import helper

    return int(math.prod(tensor.dims)) * int(
        helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )


def _operators(
    events: list[dict[str, Any]], nodes: Mapping[str, _Node], runs: int
) -> list[OperatorCost]:
    seen: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            key = f"{event['args'].get('node_index', '')} {name.removesuffix(_SUFFIX)}"
            seen.setdefault(key, []).append(event)
    found = []
    for key, its in seen.items():
        name = key.partition(" ")[2]
        times = np.array([event["dur"] for event in its], np.float64)
        # An operator in a loop runs several times per run of the model.
        per_run = max(len(its) / runs, 1.0)
        operator = str(its[-1]["args"]["op_name"])
        flops, n_bytes = _work(operator, its[-1]["args"], nodes.get(name, _Node()))
        found.append(
            OperatorCost(
                name=name or operator,
                operator=operator,
                time_ms=float(np.percentile(times, 25)) * per_run / 1e3,
                flops=flops * per_run,
                n_bytes=n_bytes * per_run,
                is_int8=operator in _INT8,
            )
        )
    return found


def _work(operator: str, seen: Mapping[str, Any], node: _Node) -> tuple[float, float]:
    """Return arithmetic operations and bytes of one run of an operator."""
    inputs = [next(iter(item.values())) for item in seen.get("input_type_shape", []) if item]
    outputs = [next(iter(item.values())) for item in seen.get("output_type_shape", []) if item]
    given, made = int(seen.get("activation_size") or 0), int(seen.get("output_size") or 0)
    constants = max(int(seen.get("parameter_size") or 0), node.weight_bytes)
    if operator == "Gather":
        return 0.0, 2.0 * made
    flops = _flops(operator, inputs, outputs, node)
    return flops, float(given + made + constants)


def _flops(operator: str, inputs: list[list[int]], outputs: list[list[int]], node: _Node) -> float:
    made = float(math.prod(outputs[0])) if outputs else 0.0
    first = inputs[0] if inputs else []
    weight = max(node.weights, key=math.prod, default=())
    if operator in MATRIX_PRODUCTS and first:
        is_turned = node.attributes.get("transA", 0) and len(first) > 1
        return 2.0 * made * first[-2 if is_turned else -1]
    if operator in CONVOLUTIONS and weight:
        if operator == "ConvTranspose":
            return 2.0 * math.prod(first) * math.prod(weight) / max(weight[0], 1)
        return 2.0 * made * math.prod(weight) / max(weight[0], 1)
    if operator in RECURRENT and len(first) == 3:
        return 2.0 * first[0] * first[1] * sum(math.prod(one) for one in node.weights)
    if operator in _ATTENTION and len(first) == 3 and weight:
        rows, length, _ = first
        width = weight[-1] / 3
        return 2.0 * rows * length * math.prod(weight) + 4.0 * rows * length**2 * width
    return 0.0 if operator in _MOVES else made * _PER_VALUE.get(operator, 1)
