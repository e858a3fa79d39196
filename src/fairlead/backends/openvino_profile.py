"""Layer by layer under OpenVINO: its own counters, its own fused graph.

Times come from OpenVINO's performance counters, precisions and shapes from the graph as it was
compiled for one batch, arithmetic from the layers of the model that each compiled layer stands for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.machine_peaks import measure_peaks
from fairlead.backends.openvino import compile_options, first_line, load_openvino
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.ports import Feeds, first_dimension
from fairlead.measure.roofline import OperatorCost, Roofline

__all__ = ["profile_openvino"]

_MOST_RUNS = 30
_PER_VALUE = {"Softmax": 5, "MVN": 8, "Gelu": 12, "Erf": 10, "Tanh": 10, "Sigmoid": 8, "Exp": 8}
_MOVES = frozenset({
    "Reshape", "Transpose", "Concat", "Slice", "StridedSlice", "Gather", "Unsqueeze", "Squeeze",
    "ShapeOf", "Convert", "Broadcast", "Split", "VariadicSplit", "Pad", "Reorder", "Const",
    "Constant", "Parameter", "Result", "Range", "Select",
})  # fmt: skip
_INT8 = frozenset({"i8", "u8"})
_MATRIX_LAYERS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution")


def profile_openvino(
    model: Path, feeds: Feeds, runtime: RuntimeSettings, *, budget_ms: float = 500.0
) -> Roofline:
    """Run a batch several times with OpenVINO's counters on, on one thread.

    Args:
        model: An ONNX file.
        feeds: One batch, one array per input; the model is compiled for its shape.
        runtime: Whose precision is used.
        budget_ms: About how long to run.

    Returns:
        Every layer that ran with its lower quartile of the times, under the roof of this machine.

    Raises:
        ModelError: OpenVINO cannot run the model, or gives no counters for it.
        MissingExtraError: OpenVINO is not installed.
    """
    openvino = load_openvino()
    single = runtime.model_copy(update={"intra_op_threads": 1})
    options = {**compile_options(single), "PERF_COUNT": True}
    try:
        core = openvino.Core()
        graph = core.read_model(str(model))
        graph.reshape({name: list(array.shape) for name, array in feeds.items()})
        work = _arithmetic(graph)
        compiled = core.compile_model(graph, "CPU", options)
        times = _times(compiled, feeds, budget_ms)
        operators = _operators(compiled.get_runtime_model(), times, work)
    except Exception as exc:
        raise ModelError(
            f"OpenVINO cannot profile the model: {first_line(exc)}",
            hint="tune with --runtime onnxruntime to see its operators",
        ) from exc
    return Roofline(measure_peaks(), operators, first_dimension(feeds))


def _times(compiled: Any, feeds: Feeds, budget_ms: float) -> dict[str, float]:  # noqa: ANN401
    """Return layer → lower quartile of its times, in ms."""
    request = compiled.create_infer_request()
    request.infer(dict(feeds))
    seen: dict[str, list[float]] = {}
    start, runs = time.perf_counter(), 0
    while runs < 3 or (runs < _MOST_RUNS and (time.perf_counter() - start) * 1e3 < budget_ms):
        request.infer(dict(feeds))
        for item in request.profiling_info:
            if item.status.name == "EXECUTED":
                seen.setdefault(item.node_name, []).append(item.real_time.total_seconds() * 1e3)
        runs += 1
    return {name: float(np.percentile(its, 25)) for name, its in seen.items()}


def _arithmetic(graph: Any) -> dict[str, float]:  # noqa: ANN401
    """Return layer of the model → its arithmetic operations for the batch."""
    found = {}
    for layer in graph.get_ordered_ops():
        shapes = [_shape(port.get_partial_shape()) for port in layer.inputs()]
        made = [_shape(port.get_partial_shape()) for port in layer.outputs()]
        if made and made[0] is not None:
            found[str(layer.get_friendly_name())] = _flops(
                str(layer.get_type_name()), shapes, float(math.prod(made[0])), layer
            )
    return found


def _flops(
    kind: str,
    shapes: list[tuple[int, ...] | None],
    made: float,
    layer: Any,  # noqa: ANN401
) -> float:
    first = shapes[0] if shapes else None
    weight = shapes[1] if len(shapes) > 1 else None
    if kind == "MatMul" and first:
        is_turned = bool(layer.get_attributes().get("transpose_a")) and len(first) > 1
        return 2.0 * made * first[-2 if is_turned else -1]
    if kind in ("Convolution", "GroupConvolution") and weight:
        outer = 2 if kind == "GroupConvolution" else 1
        return 2.0 * made * math.prod(weight[outer:])
    if kind == "ConvolutionBackpropData" and first and weight:
        return 2.0 * math.prod(first) * math.prod(weight[1:])
    return 0.0 if kind in _MOVES else made * _PER_VALUE.get(kind, 1)


def _operators(
    compiled: Any,  # noqa: ANN401
    times: Mapping[str, float],
    work: Mapping[str, float],
) -> list[OperatorCost]:
    found = []
    for layer in compiled.get_ordered_ops():
        name = str(layer.get_friendly_name())
        if name not in times:
            continue
        facts = layer.get_rt_info()
        kind, sources = _fact(facts, "layerType"), _fact(facts, "originalLayersNames")
        found.append(
            OperatorCost(
                name=name,
                operator=kind or "Layer",
                time_ms=times[name],
                flops=max(
                    sum(work.get(one, 0.0) for one in sources.split(",")), _dense(layer, kind)
                ),
                n_bytes=_bytes(layer),
                is_int8=_fact(facts, "runtimePrecision") in _INT8
                and kind.startswith(_MATRIX_LAYERS),
            )
        )
    if not found:
        raise ModelError("there are no counters", hint="profile it with ONNX Runtime")
    return found


def _dense(layer: Any, kind: str) -> float:  # noqa: ANN401
    """Return the arithmetic of a compiled matrix product, which need not tell where it is from."""
    shapes = [_shape(port.get_partial_shape()) for port in (*layer.outputs(), *layer.inputs())]
    if kind != "FullyConnected" or len(shapes) < 2 or not shapes[0] or not shapes[1]:
        return 0.0
    return 2.0 * math.prod(shapes[0]) * shapes[1][-1]


def _bytes(layer: Any) -> float:  # noqa: ANN401
    """Return what a layer reads and writes; of a table that it looks up in, only what it takes."""
    ports = [*layer.inputs(), *layer.outputs()]
    if _fact(layer.get_rt_info(), "layerType") == "Gather":
        ports = [*layer.outputs(), *layer.outputs()]
    whole = 0.0
    for port in ports:
        shape = _shape(port.get_partial_shape())
        if shape is not None and port.get_element_type().is_static():
            whole += math.prod(shape) * port.get_element_type().bitwidth / 8
    return whole


def _shape(partial: Any) -> tuple[int, ...] | None:  # noqa: ANN401
    return tuple(int(size) for size in partial.to_shape()) if partial.is_static else None


def _fact(facts: Any, name: str) -> str:  # noqa: ANN401
    if name not in facts:
        return ""
    value = facts[name]
    return str(value.astype(str) if hasattr(value, "astype") else value)
