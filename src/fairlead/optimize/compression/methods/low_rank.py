"""Low-rank factorisation without training, the rank of every matrix chosen by one threshold.

The threshold is the share of a layer's output energy that may be lost. It is the same for every
layer, so layers that carry little get small ranks. Bisection over the thresholds that differ
finds the strongest compression that the judge lets pass (truncation-aware whitening; Wang et
al., SVD-LLM, 2024). The strongest one on some rows is a lucky one as well, so a ladder of
gentler ones comes with it, for the decision on other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fairlead.backends.onnx_graph import fold_constants, hoist_constants, read_graph, upgrade_opset
from fairlead.backends.onnx_low_rank import (
    Factorisation,
    find_factorisations,
    replace_matrices,
)
from fairlead.core.ports import Feeds

__all__ = ["LowRankModel", "LowRankSearch", "low_rank"]

_STEPS = 48
_SMALLEST_LOSS = 1e-6
_LARGEST_LOSS = 0.5
_RUNGS = 4
_OPTIONS_PER_RUNG = 4
"""Four options gentler is about a third of the loss."""


@dataclass(frozen=True)
class LowRankModel:
    """One compressed version of a model.

    Attributes:
        loss: Share of output energy each layer may lose.
        ranks: Matrix → rank.
        n_weights: Weights of the matrices after the change, all matrices counted.
        model: The compressed model.
    """

    loss: float
    ranks: dict[str, int]
    n_weights: int
    model: bytes = field(repr=False)


@dataclass(frozen=True)
class LowRankSearch:
    """What the search found.

    Attributes:
        matrices: The matrices that were looked at.
        ladder: The strongest model the judge let pass, and gentler ones; empty when none passed.
        evaluations: Models that were judged.
        n_options: Different models that could have been judged; 0 when no rank saves weights.
    """

    matrices: tuple[Factorisation, ...]
    ladder: tuple[LowRankModel, ...]
    evaluations: int
    n_options: int

    @property
    def n_weights(self) -> int:
        """Weights of the matrices before the change."""
        return sum(item.n_weights for item in self.matrices)


def low_rank(
    path: Path,
    feeds: Feeds,
    is_good: Callable[[bytes], bool],
    *,
    min_weights: int,
    max_evaluations: int,
) -> LowRankSearch:
    """Find the strongest compression that passes.

    Args:
        path: An ONNX file.
        feeds: Rows whose activations decide what a matrix is needed for.
        is_good: Judges a compressed model.
        min_weights: Smallest matrix to look at, in weights.
        max_evaluations: Most calls of `is_good`.

    Raises:
        ModelError: The model cannot be read or rewritten.
    """
    graph = hoist_constants(upgrade_opset(read_graph(path)))
    matrices = find_factorisations(graph, feeds, min_weights=min_weights)
    if not matrices:
        graph = hoist_constants(fold_constants(graph))
        matrices = find_factorisations(graph, feeds, min_weights=min_weights)
    options = _options(matrices)

    def build(place: int) -> LowRankModel:
        loss, ranks = options[place]
        model = replace_matrices(graph, matrices, ranks)
        return LowRankModel(loss, ranks, _weights(matrices, ranks), model)

    evaluations, low, high = 0, 0, len(options)
    while low < high and evaluations < max_evaluations:
        middle = (low + high) // 2
        evaluations += 1
        if is_good(build(middle).model):
            low = middle + 1
        else:
            high = middle
    rungs = range(low - 1, -1, -_OPTIONS_PER_RUNG)[:_RUNGS]
    return LowRankSearch(matrices, tuple(map(build, rungs)), evaluations, len(options))


def _options(matrices: tuple[Factorisation, ...]) -> list[tuple[float, dict[str, int]]]:
    """Return the different choices of ranks, from the gentlest to the strongest."""
    options: list[tuple[float, dict[str, int]]] = []
    for loss in np.geomspace(_SMALLEST_LOSS, _LARGEST_LOSS, _STEPS):
        found = {item.name: item.rank_for(float(loss)) for item in matrices}
        ranks = {name: rank for name, rank in found.items() if rank is not None}
        if ranks and (not options or options[-1][1] != ranks):
            options.append((float(loss), ranks))
    return options


def _weights(matrices: tuple[Factorisation, ...], ranks: dict[str, int]) -> int:
    return sum(
        item.weights_at(ranks[item.name]) if item.name in ranks else item.n_weights
        for item in matrices
    )
