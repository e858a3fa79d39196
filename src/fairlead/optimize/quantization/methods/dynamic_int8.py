"""Dynamic INT8: weights per channel in int8 once, activations quantized as they come.

Needs no calibration set: the range of every activation is measured on the batch itself
(ONNX Runtime's dynamic quantization; the arithmetic is that of Jacob et al., CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairlead.backends.onnx_quantization import prepare_quantization, quantize_dynamic_int8

__all__ = ["Recipe", "dynamic_int8"]


@dataclass(frozen=True)
class Recipe:
    """One quantized version of a model.

    Attributes:
        name: What was quantized, for people.
        model: The quantized model.
        n_weights: Weights of the original that can be quantized.
    """

    name: str
    model: bytes = field(repr=False)
    n_weights: int


def dynamic_int8(path: Path) -> tuple[Recipe, ...]:
    """Quantize a model in every way that may turn out fastest.

    Convolutions in dynamic INT8 are often slower than in fp32, so a model that has both
    convolutions and other weights gets a second recipe that leaves them alone.

    Args:
        path: An ONNX file.

    Returns:
        The recipes; none when the model has no weights that can be quantized.

    Raises:
        ModelError: The model cannot be read or quantized.
    """
    graph, weights = prepare_quantization(path)
    operators = weights.tensors_by_operator
    if not weights.n_weights:
        return ()
    names = ", ".join(f"{count} {operator}" for operator, count in sorted(operators.items()))
    recipes = [Recipe(names, quantize_dynamic_int8(graph), weights.n_weights)]
    if "Conv" in operators and len(operators) > 1:
        rest = ", ".join(f"{n} {op}" for op, n in sorted(operators.items()) if op != "Conv")
        model = quantize_dynamic_int8(graph, without=frozenset({"Conv"}))
        recipes.append(Recipe(f"{rest}, convolutions left in fp32", model, weights.n_weights))
    return tuple(recipes)
