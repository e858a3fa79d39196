"""Attention heads left out: those that can add least to what flows on.

Many heads can go without notice (Michel, Levy & Neubig, NeurIPS 2019). A head is worth the norm
of what its values become behind the outlet, relative to its layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fairlead.backends.torch_heads import drop_heads, find_attention, head_weights
from fairlead.optimize.compression.bench import Bench, Found
from fairlead.optimize.compression.stages import Cut, in_stages, material_of

__all__ = ["head_dropping"]

METHOD = "head-dropping"


def head_dropping(bench: Bench) -> Found:
    """Leave out ever more heads while training wins the quality back.

    Raises:
        ConfigError: No module was given.
    """
    material = material_of(bench, METHOD)
    total = sum(heads for _, heads in find_attention(material.module))
    removable = sum(heads - 1 for _, heads in find_attention(material.module))
    if not removable:
        return Found(METHOD, reason="it has no attention with heads to spare")
    stages = bench.config.stages
    most = min(max(int(total * bench.config.max_ratio), 1), removable)
    counts = sorted({max(round(most * k / stages), 1) for k in range(1, stages + 1)})
    cuts = [
        Cut(f"{gone} of {total} heads left out", partial(_cut, total - gone)) for gone in counts
    ]
    return in_stages(bench, METHOD, cuts)


def _cut(n_kept: int, module: Any) -> Sequence[tuple[str, str, list[int]]]:  # noqa: ANN401
    found = list(find_attention(module))
    worth = []
    for name, _heads in found:
        weights = head_weights(module, name)
        mean = sum(weights) / len(weights)
        worth += [(value / max(mean, 1e-12), name, place) for place, value in enumerate(weights)]
    # The best head of every layer stays, whatever it is worth beside other layers.
    best = {name: max(item for item in worth if item[1] == name) for name, _ in found}
    rest = sorted((item for item in worth if item not in best.values()), reverse=True)
    kept = [*best.values(), *rest[: max(n_kept - len(best), 0)]]
    cuts = []
    for name, heads in found:
        places = sorted(place for _, layer, place in kept if layer == name)
        if len(places) < heads:
            drop_heads(module, name, places)
            cuts.append(("heads", name, places))
    return cuts
