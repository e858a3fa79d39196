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

from fairlead.backends.onnx_graph import (
    fold_constants,
    has_integer_matrices,
    hoist_constants,
    onnx_versions,
    read_graph,
    upgrade_opset,
)
from fairlead.backends.onnx_low_rank import (
    Factorisation,
    find_factorisations,
    replace_matrices,
)
from fairlead.core.ports import Feeds
from fairlead.core.report import Measure, Table
from fairlead.optimize.compression.bench import Bench, Compressed, Found

__all__ = ["LowRankModel", "LowRankSearch", "low_rank", "search_ranks"]

METHOD = "low-rank"

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


def low_rank(bench: Bench) -> Found:
    """Factorise the large matrices of a model; ranks by bisection, judged on the search rows.

    Raises:
        ModelError: The model cannot be read or rewritten.
    """
    config, path = bench.config, bench.bundle.model_path
    found = search_ranks(
        path,
        bench.tensors(bench.whole),
        lambda model: bench.is_good(model, METHOD),
        min_weights=config.min_weights,
        max_evaluations=config.max_evaluations,
    )
    if not found.n_options:
        reason, advice = _nothing(path, found, config.min_weights)
        return Found(METHOD, reason=reason, advice=advice)
    return Found(METHOD, tuple(_version(model, found) for model in found.ladder))


def _nothing(path: Path, found: LowRankSearch, min_weights: int) -> tuple[str, str]:
    if found.matrices:
        return "its matrices need nearly their full rank, so two factors would be larger", ""
    if has_integer_matrices(path, min_weights=min_weights):
        text = "its weight matrices are quantized to integers, which cannot be factorised"
        return text, "compress the original first, then quantize that"
    return f"it has no weight matrix of {min_weights:,} or more weights", ""


def _version(model: LowRankModel, found: LowRankSearch) -> Compressed:
    shapes = {item.name: item for item in found.matrices}
    text = f"{len(model.ranks)} of {len(found.matrices)} matrices factorised"
    table = Table(
        title="Matrices",
        columns=("matrix", "shape", "rank", "weights before", "weights after"),
        rows=tuple(
            (
                name,
                " x ".join(map(str, shapes[name].shape)),
                rank,
                shapes[name].n_weights,
                shapes[name].weights_at(rank),
            )
            for name, rank in model.ranks.items()
        ),
    )
    return Compressed(
        method=METHOD,
        change=f"{METHOD} ({text}, {model.loss:.2g} of the energy lost)",
        model=model.model,
        measures=(
            Measure(
                name="matrix_weights",
                value=model.n_weights,
                unit="count",
                baseline=found.n_weights,
                note=text,
            ),
        ),
        tables=(table,),
        details={"ranks": model.ranks, "energy_lost": model.loss},
        packages=onnx_versions(),
        notes=(text,),
    )


def search_ranks(
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
