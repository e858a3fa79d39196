"""Static INT8 by NNCF: its placement of 8 bits, with smoothing and correction of biases.

A second opinion beside our own static methods, where the library is installed; what it makes is
meant for OpenVINO and is mostly slow on ONNX Runtime, so there it is only made when asked for.
"""

from __future__ import annotations

from fairlead.backends.nncf_process import has_nncf, quantize_with_nncf
from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["nncf_int8"]


def nncf_int8(work: Workbench) -> tuple[Recipe, ...]:
    """Quantize weights and activations as NNCF does.

    Args:
        work: The model on the bench, with a calibration set.

    Returns:
        One recipe per precision of OpenVINO, and one for ONNX Runtime when the method is asked for
        by name; none when no layer has weights, or, with `auto`, when NNCF is not installed or
        OpenVINO cannot run the model.

    Raises:
        DataError: There is no calibration set.
        ModelError: NNCF cannot quantize the model.
        MissingExtraError: NNCF is asked for by name and not installed.
    """
    is_asked = work.config.method != "auto"
    weighted = tuple(layer for layer in work.layers if layer.weight)
    if not weighted or not (is_asked or has_nncf()):
        return ()
    source = write_graph(work.static_graph)
    runtimes: list[RuntimeSettings | None] = [
        runtime for runtime in work.openvino if _runs(source, runtime)
    ]
    if is_asked and work.config.runtime != "openvino":
        runtimes.append(None)
    if not runtimes:
        return ()
    model = quantize_with_nncf(
        source,
        work.rows(),
        is_transformer=any(node.op_type == "Softmax" for node in work.static_graph.graph.node),
        is_symmetric=work.config.symmetric,
    )
    n_weights = sum(layer.n_weights for layer in weighted)
    name = f"{len(weighted)} layers, smoothed, biases corrected"
    return tuple(Recipe("nncf-int8", name, model, n_weights, runtime) for runtime in runtimes)


def _runs(model: bytes, runtime: RuntimeSettings) -> bool:
    """Whether OpenVINO takes the model at all: making 8 bits of it takes a minute."""
    try:
        open_onnx(model, runtime).close()
    except ModelError:
        return False
    return True
