"""Static INT8: ranges of activations come from a calibration set and are fixed in the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnx_layers import Layer
from fairlead.backends.onnx_qdq import QdqPlan, insert_qdq, joins_of
from fairlead.backends.onnx_ranges import TensorStatistics
from fairlead.core.bundle import RuntimeSettings
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["qdq_recipes", "static_int8"]


def static_int8(work: Workbench) -> tuple[Recipe, ...]:
    """Quantize weights and activations of every layer with fixed ranges.

    Args:
        work: The model on the bench, with a calibration set.

    Returns:
        One recipe per runtime that is installed; none when there is no layer with weights.

    Raises:
        DataError: There is no calibration set.
        ModelError: The model cannot be run.
    """
    return qdq_recipes(work, work.static_graph, work.statistics, "static-int8")


def qdq_recipes(
    work: Workbench,
    graph: Any,  # noqa: ANN401 (untyped library)
    seen: Mapping[str, TensorStatistics],
    method: str,
) -> tuple[Recipe, ...]:
    """Make recipes from a graph and what calibration showed of it.

    Products of two activations (attention) gain least and lose most: a second recipe for ONNX
    Runtime quantizes them as well, for large batches. Sums, concatenations and pools between
    convolutions stay in float or are computed in 8 bits, in a recipe each.
    """
    every = tuple(layer for layer in work.layers_in(graph) if layer.source in seen)
    weighted = tuple(layer for layer in every if layer.weight)
    if not weighted:
        return ()
    recipes = []
    if work.config.runtime != "openvino":
        recipes.append(_recipe(work, graph, seen, method, weighted, None))
        if len(every) > len(weighted):
            recipes.append(_recipe(work, graph, seen, method, every, None))
        if joins_of(graph) and len(every) == len(weighted):
            recipes.append(_recipe(work, graph, seen, method, weighted, None, joins=True))
    recipes += [_recipe(work, graph, seen, method, weighted, runtime) for runtime in work.openvino]
    return tuple(recipes)


def _recipe(
    work: Workbench,
    graph: Any,  # noqa: ANN401 (untyped library)
    seen: Mapping[str, TensorStatistics],
    method: str,
    layers: tuple[Layer, ...],
    runtime: RuntimeSettings | None,
    *,
    joins: bool = False,
) -> Recipe:
    ranges, names = work.ranges(seen), tuple(layer.name for layer in layers)
    config = work.config

    def plan(chosen: tuple[str, ...], *, switches: bool = False) -> QdqPlan:
        return QdqPlan(
            chosen,
            ranges,
            is_per_channel=config.per_channel,
            is_symmetric=config.symmetric,
            joins=joins,
            switches=switches,
        )

    def rebuild(float_layers: frozenset[str]) -> bytes:
        left = tuple(name for name in names if name not in float_layers)
        return write_graph(insert_qdq(graph, plan(left)))

    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.operator] = counts.get(layer.operator, 0) + 1
    words = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    words += ", sums between them and outputs too" if joins else ""
    return Recipe(
        method=method,
        name=f"{words}, {config.calibration_method} ranges",
        model=rebuild(frozenset()),
        n_weights=sum(layer.n_weights for layer in layers),
        runtime=runtime,
        layers=names,
        rebuild=rebuild,
        simulate=lambda: insert_qdq(graph, plan(names, switches=True)),
    )
