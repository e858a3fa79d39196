"""Half precision: fp16 and bf16, with what would overflow left in fp32."""

from __future__ import annotations

from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnx_half import overflowing_nodes, store_half, to_fp16
from fairlead.backends.onnxruntime import TENSORRT, available_providers
from fairlead.core.errors import ModelError
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["bf16", "fp16"]

_CUDA = "CUDAExecutionProvider"
_OVERFLOW_ROWS = 16


def fp16(work: Workbench) -> tuple[Recipe, ...]:
    """Compute in fp16 on a GPU, or store the weights in fp16 where only a CPU is present.

    A CPU has no fp16 arithmetic in ONNX Runtime worth using: weights are stored in half the bytes
    and computed with in fp32. On a GPU, nodes whose values fp16 cannot hold stay in fp32.

    Args:
        work: The model on the bench.

    Returns:
        The recipes; none when the model has no fp32 weights.

    Raises:
        ModelError: The model cannot be run or converted.
    """
    stored, n_weights = store_half(work.graph, "fp16")
    recipes = []
    if n_weights and work.config.runtime != "openvino":
        recipes.append(Recipe("fp16", "weights stored in fp16", write_graph(stored), n_weights))
    if _CUDA in available_providers() and work.calibration is not None:
        recipes += _on_gpu(work, n_weights)
    return tuple(recipes)


def _on_gpu(work: Workbench, n_weights: int) -> list[Recipe]:
    overflowing = overflowing_nodes(work.graph, work.few_rows(_OVERFLOW_ROWS))
    runtime = work.runtime.model_copy(update={"execution_provider": _CUDA})
    recipes = []
    for keep_sensitive in (False, True):
        try:
            graph = to_fp16(work.graph, keep=overflowing, keep_sensitive=keep_sensitive)
        except ModelError:
            continue
        words = "normalisations and sums in fp32" if keep_sensitive else "all arithmetic in fp16"
        name = f"{words}, {len(overflowing)} nodes kept for overflow"
        recipes.append(Recipe("fp16", name, write_graph(graph), n_weights, runtime))
    return recipes


def bf16(work: Workbench) -> tuple[Recipe, ...]:
    """Store weights in bf16, and compute in it where OpenVINO or TensorRT is installed.

    Args:
        work: The model on the bench.

    Returns:
        The recipes; none when the model has no fp32 weights.

    Raises:
        ModelError: The model cannot be written.
    """
    stored, n_weights = store_half(work.graph, "bf16")
    if not n_weights:
        return ()
    model = write_graph(stored)
    recipes = []
    if work.config.runtime != "openvino":
        recipes.append(Recipe("bf16", "weights stored in bf16", model, n_weights))
    name = "weights stored and arithmetic in bf16"
    recipes += [
        Recipe("bf16", name, model, n_weights, runtime)
        for runtime in work.openvino
        if runtime.float_precision == "bf16"
    ]
    if TENSORRT in available_providers() and work.config.runtime != "openvino":
        update = {"execution_provider": TENSORRT, "float_precision": "bf16"}
        runtime = work.runtime.model_copy(update=update)
        name = "arithmetic in bf16 where TensorRT may"
        recipes.append(Recipe("bf16", name, write_graph(work.graph), n_weights, runtime))
    return tuple(recipes)
