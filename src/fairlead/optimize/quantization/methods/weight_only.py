"""Weights alone in 8 or 4 bits, block by block: less memory to read, activations untouched.

Pays where weights are read for few rows at a time; above some tens of tokens per call, arithmetic
and not memory is the limit, and it becomes slower than int8 activations.
"""

from __future__ import annotations

from typing import Literal

from fairlead.backends.onnx_block_weights import block_quantize, blockable_layers
from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnx_qdq import QdqPlan, insert_qdq
from fairlead.core.errors import ModelError
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["weight_int4", "weight_int8"]


def weight_int8(work: Workbench) -> tuple[Recipe, ...]:
    """Store the weights of dense layers in 8 bits.

    Args:
        work: The model on the bench.

    Returns:
        One recipe; none when no weight is large enough for a block.

    Raises:
        DataError: `gptq` is asked for and there is no calibration set.
        ModelError: The model cannot be run or written.
    """
    return _recipes(work, 8)


def weight_int4(work: Workbench) -> tuple[Recipe, ...]:
    """Store the weights of dense layers in 4 bits; see `weight_int8`."""
    return _recipes(work, 4)


def _recipes(work: Workbench, bits: Literal[4, 8]) -> tuple[Recipe, ...]:
    config = work.config
    # MatMulNBits is an operator of ONNX Runtime.
    if config.runtime == "openvino":
        return ()
    layers = blockable_layers(work.static_graph, block=config.block_size)
    if not layers:
        return ()
    if work.folder is not None and config.rounding == "gptq":
        raise ModelError(
            "gptq needs what flows into every layer, and the model is too large to be taken apart",
            hint="round with --rounding hqq",
        )
    flow = work.flow_into(layers) if config.rounding == "gptq" else None
    graph = insert_qdq(work.static_graph, QdqPlan((), {}))

    def rebuild(float_layers: frozenset[str]) -> bytes:
        chosen = [layer.name for layer in layers if layer.name not in float_layers]
        return write_graph(
            block_quantize(
                graph,
                chosen,
                bits=bits,
                block=config.block_size,
                rounding=config.rounding,
                inputs=flow,
                folder=work.folder,
            )
        )

    return (
        Recipe(
            method=f"weight-int{bits}",
            name=f"{len(layers)} layers, blocks of {config.block_size}, {config.rounding}",
            model=rebuild(frozenset()),
            n_weights=sum(layer.n_weights for layer in layers),
        ),
    )
