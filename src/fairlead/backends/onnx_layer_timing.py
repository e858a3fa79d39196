"""What 8 bits save in every layer, measured: each kind of layer alone, in fp32 and in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fairlead.backends.onnx_graph import Graph, write_graph
from fairlead.backends.onnx_layers import Layer, initializers, layers_of, run_taps
from fairlead.backends.onnx_qdq import QdqPlan, insert_qdq, observed_tensors
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.ports import Array, Feeds
from fairlead.measure.latency import clocks_for, measure_interleaved

__all__ = ["saved_ms_per_layer"]

_BLOCKS = 9
_LIMIT_S = 1.0


def saved_ms_per_layer(
    model: Graph,
    layers: tuple[str, ...],
    feeds: Feeds,
    runtime: RuntimeSettings,
    *,
    quantize: Callable[[Graph], bytes] | None = None,
) -> dict[str, float]:
    """Measure what each layer gains from 8 bits; layers of one kind are measured once.

    Args:
        model: A prepared graph in fp32.
        layers: Names of the layers.
        feeds: One batch as it will be served, one array per input.
        runtime: What runs the model.
        quantize: One-layer graph → its quantized bytes; static 8 bits when None.

    Returns:
        Layer → CPU milliseconds per call that 8 bits save; negative where they cost time.

    Raises:
        ModelError: The model cannot be run.
    """
    chosen = [layer for layer in layers_of(model) if layer.name in layers]
    nodes = {node.name: node for node in model.graph.node}
    wanted = [name for layer in chosen for name in nodes[layer.name].input]
    seen: dict[str, Array] = dict(feeds)
    seen.update(next(iter(run_taps(model, wanted, feeds, batch_rows=10**6)), {}))
    known: dict[tuple[object, ...], float] = {}
    found = {}
    for layer in chosen:
        node = nodes[layer.name]
        key = (
            layer.operator,
            layer.shape,
            tuple(seen[name].shape for name in node.input if name in seen),
            tuple(item.SerializeToString() for item in node.attribute),
        )
        if key not in known:
            known[key] = _saved(model, layer, node, seen, runtime, quantize or _static)
        found[layer.name] = known[key]
    return found


def _saved(
    model: Graph,
    layer: Layer,
    node: Any,  # noqa: ANN401 (untyped library)
    seen: Mapping[str, Array],
    runtime: RuntimeSettings,
    quantize: Callable[[Graph], bytes],
) -> float:
    alone = _alone(model, node, seen, layer.output)
    feeds = {item.name: seen[item.name] for item in alone.graph.input}
    runners = []
    try:
        for data in (write_graph(alone), quantize(alone)):
            runners.append(open_onnx(data, runtime))
        times = measure_interleaved(
            {str(place): partial(runner.run, feeds) for place, runner in enumerate(runners)},
            blocks=_BLOCKS,
            time_limit_s=_LIMIT_S,
            clocks=clocks_for([runtime.execution_provider]),
        )
    except ModelError:
        return 0.0
    finally:
        for runner in runners:
            runner.close()
    return times["0"].cpu_min_ms - times["1"].cpu_min_ms


def _alone(model: Graph, node: Any, seen: Mapping[str, Array], output: str) -> Graph:  # noqa: ANN401
    """Return a model that is one layer; its batch dimension is free."""
    from onnx import TensorProto, helper

    constants = initializers(model)
    names = [name for name in dict.fromkeys(node.input) if name and name in seen]
    inputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(seen[name].dtype),
            ["n", *seen[name].shape[1:]] if seen[name].ndim else [],
        )
        for name in names
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    weights = [constants[name] for name in node.input if name in constants]
    graph = helper.make_graph([node], "layer", inputs, outputs, weights)
    alone = helper.make_model(graph, opset_imports=list(model.opset_import))
    alone.ir_version = model.ir_version
    return alone


def _static(alone: Graph) -> bytes:
    names = tuple(layer.name for layer in layers_of(alone))
    ranges = dict.fromkeys(observed_tensors(alone), (-4.0, 4.0))
    return write_graph(insert_qdq(alone, QdqPlan(names, ranges)))
