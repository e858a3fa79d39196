"""SmoothQuant: static INT8 after outliers were moved from activations into weights.

Xiao et al., ICML 2023. Best for transformers, whose activations have a few huge channels.
"""

from __future__ import annotations

from fairlead.backends.onnx_qdq import observed_tensors
from fairlead.backends.onnx_ranges import collect_statistics
from fairlead.backends.onnx_smoothing import smooth_layers
from fairlead.optimize.quantization.methods.static_int8 import qdq_recipes
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["smoothquant"]


def smoothquant(work: Workbench) -> tuple[Recipe, ...]:
    """Equalise channels, then quantize statically.

    Args:
        work: The model on the bench, with a calibration set.

    Returns:
        One recipe per runtime that is installed; none when no layer can be equalised.

    Raises:
        DataError: There is no calibration set.
        ModelError: The model cannot be run.
    """
    if not any(layer.weight for layer in work.layers):
        return ()
    graph, touched = smooth_layers(
        work.static_graph, work.statistics, strength=work.config.smoothing
    )
    if not touched:
        return ()
    seen = collect_statistics(graph, observed_tensors(graph), work.rows())
    return qdq_recipes(work, graph, seen, "smoothquant")
