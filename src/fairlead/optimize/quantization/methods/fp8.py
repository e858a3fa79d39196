"""FP8: weights and activations in 8-bit floats (E4M3), where a GPU multiplies them.

Micikevicius et al., "FP8 formats for deep learning", 2022. An 8-bit float keeps its relative
precision over four decades, so outliers cost less than in INT8. Only TensorRT on GPUs from Ada and
Hopper on runs it faster than 16 bits.
"""

from __future__ import annotations

from fairlead.backends.onnx_fp8 import insert_fp8
from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnxruntime import TENSORRT, available_providers
from fairlead.core.errors import ModelError
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["fp8"]


def fp8(work: Workbench) -> tuple[Recipe, ...]:
    """Quantize every layer with weights to 8-bit floats.

    Args:
        work: The model on the bench, with a calibration set.

    Returns:
        One recipe; none when the model has no such layers, or with `auto` nothing runs FP8 here.

    Raises:
        DataError: There is no calibration set.
        ModelError: FP8 was asked for and nothing runs it here, or the opset cannot be raised.
    """
    if TENSORRT not in available_providers() or work.config.runtime == "openvino":
        if work.config.method == "auto":
            return ()
        found = ", ".join(available_providers())
        raise ModelError(
            f"fp8 needs {TENSORRT} and a GPU that multiplies 8-bit floats; found {found}",
            hint="install onnxruntime-gpu and TensorRT, or use static-int8",
        )
    layers = tuple(layer for layer in work.layers if layer.weight)
    if not layers:
        return ()
    ranges, names = work.ranges(work.statistics), tuple(layer.name for layer in layers)
    update = {"execution_provider": TENSORRT, "float_precision": "fp16"}

    def rebuild(float_layers: frozenset[str]) -> bytes:
        left = tuple(name for name in names if name not in float_layers)
        return write_graph(insert_fp8(work.static_graph, left, ranges))

    return (
        Recipe(
            method="fp8",
            name=f"{len(layers)} layers, E4M3",
            model=rebuild(frozenset()),
            n_weights=sum(layer.n_weights for layer in layers),
            runtime=work.runtime.model_copy(update=update),
            layers=names,
            rebuild=rebuild,
        ),
    )
