"""Where a rewritten model leaves its original: layer by layer, on the same rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph
from fairlead.backends.onnx_layers import layers_of, run_taps
from fairlead.core.comparison import LayerDivergence
from fairlead.core.errors import ModelError
from fairlead.core.ports import Array, Feeds

__all__ = ["layer_divergence"]

_BATCH_ROWS = 8


def layer_divergence(
    original: Graph, changed: Graph, feeds: Feeds, *, worst: int = 5
) -> tuple[LayerDivergence, ...]:
    """Compare what every layer gives in both models; layers that one of them lost are left out.

    Args:
        original: The graph in fp32.
        changed: The rewritten one; tensors keep their names.
        feeds: A few rows, one array per input.
        worst: How many layers to return.

    Returns:
        The layers with the smallest signal-to-noise ratio, the worst first; none when the
        rewritten model cannot be run layer by layer.
    """
    layers = layers_of(original)
    made = {name for node in changed.graph.node for name in node.output}
    shared = [layer for layer in layers if layer.output in made]
    sums = {layer.output: np.zeros(4) for layer in shared}
    names = list(sums)
    try:
        old = run_taps(original, names, feeds, batch_rows=_BATCH_ROWS)
        new = run_taps(changed, names, feeds, batch_rows=_BATCH_ROWS)
        for before, after in zip(old, new, strict=True):
            for name in before.keys() & after.keys():
                sums[name] += _products(before[name], after[name])
    except ModelError:
        return ()
    found = []
    for layer in shared:
        noise, signal, other, product = sums[layer.output]
        ratio = 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))
        cosine = product / max(float(np.sqrt(signal * other)), 1e-30)
        found.append(
            LayerDivergence(
                name=layer.name,
                operator=layer.operator,
                sqnr_db=round(float(np.clip(ratio, -300, 300)), 2),
                cosine=round(float(np.clip(cosine, -1, 1)), 6),
            )
        )
    return tuple(sorted(found, key=lambda item: item.sqnr_db)[:worst])


def _products(before: Array, after: Array) -> NDArray[np.float64]:
    """Return the sums of squares of difference, original and changed, and of their product."""
    if before.shape != after.shape:
        return np.array([np.inf, 0, 0, 0])
    old, new = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    new = np.nan_to_num(new, nan=1e30, posinf=1e30, neginf=-1e30)
    old = np.nan_to_num(old)
    gap = old - new
    return np.array([gap @ gap, old @ old, new @ new, old @ new])
