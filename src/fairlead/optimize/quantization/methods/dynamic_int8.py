"""Dynamic INT8: weights per channel in int8 once, activations quantized as they come.

Needs no calibration set: the range of every activation is measured on the batch itself
(ONNX Runtime's dynamic quantization; the arithmetic is that of Jacob et al., CVPR 2018).
"""

from __future__ import annotations

from fairlead.backends.onnx_qdq import QdqPlan, insert_qdq
from fairlead.backends.onnx_quantization import quantize_dynamic_int8
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["dynamic_int8"]


def dynamic_int8(work: Workbench) -> tuple[Recipe, ...]:
    """Quantize a model in every way that may turn out fastest.

    Convolutions in dynamic INT8 are often slower than in fp32, so a model that has both
    convolutions and other weights gets a second recipe that leaves them alone.

    Args:
        work: The model on the bench.

    Returns:
        The recipes; none when the model has no weights that can be quantized.

    Raises:
        ModelError: The model cannot be quantized.
    """
    operators = work.weights.tensors_by_operator
    if not work.weights.n_weights or work.config.runtime == "openvino":
        return ()
    recipes = [_recipe(work, frozenset())]
    if work.config.per_channel and set(operators) & {"MatMul", "Gemm"}:
        # One scale per weight is coarser, and may be faster where few rows are run.
        recipes.append(_recipe(work, frozenset(), is_per_channel=False))
    if "Conv" in operators and len(operators) > 1:
        recipes.append(_recipe(work, frozenset({"Conv"})))
    return tuple(recipes)


def _recipe(
    work: Workbench, without: frozenset[str], *, is_per_channel: bool | None = None
) -> Recipe:
    is_fine = work.config.per_channel if is_per_channel is None else is_per_channel
    counts = sorted(work.weights.tensors_by_operator.items())
    names = ", ".join(f"{count} {name}" for name, count in counts if name not in without)
    layers = tuple(
        layer.name for layer in work.layers if layer.weight and layer.operator not in without
    )

    def rebuild(float_layers: frozenset[str]) -> bytes:
        return quantize_dynamic_int8(
            work.graph, without=without, float_nodes=float_layers, is_per_channel=is_fine
        )

    def simulate() -> object:
        plan = QdqPlan(layers, {}, is_per_channel=is_fine, is_dynamic=True, switches=True)
        return insert_qdq(work.static_graph, plan)

    names += ", convolutions left in fp32" if without else ""
    names += ", one scale per weight" if is_per_channel is False else ""
    return Recipe(
        method="dynamic-int8",
        name=names,
        model=rebuild(frozenset()),
        n_weights=work.weights.n_weights,
        layers=layers,
        rebuild=rebuild,
        simulate=simulate,
    )
