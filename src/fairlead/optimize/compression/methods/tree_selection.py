"""A smaller ensemble of trees: the trees that stand for all, their leaves weighted anew.

Trees are ordered by orthogonal matching pursuit on the ensemble's own answers, so no labels are
needed (ordered aggregation; Martínez-Muñoz, Hernández-Lobato & Suárez, IEEE TPAMI 31, 2009).
Bisection over their number finds the fewest that keep the budget; a budget of 0 keeps all of
them. In any case entries of leaves that add nothing are left out, which changes no answer. Works
on every converted forest or boosted ensemble.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph, onnx_versions, read_graph
from fairlead.backends.onnx_layers import run_taps
from fairlead.backends.onnx_trees import (
    TreeEnsemble,
    choose_trees,
    find_ensemble,
    fitted_weights,
    has_idle_entries,
    keep_trees,
    tree_answers,
)
from fairlead.core.report import Measure
from fairlead.optimize.compression.bench import Bench, Compressed, Found

__all__ = ["tree_selection"]

METHOD = "tree-selection"
_MAX_FIT_ROWS = 2000
_OPTIONS = 24
_GENTLER = (1.0, 1.6, 3.0)
"""Times the fewest trees that pass: what few rows let pass is partly luck."""
_HARDLY_FEWER = 2 / 3
"""Share of the trees that nearly always answers alike: the last rung where leaves are lean."""
_FEWEST = 2


def tree_selection(bench: Bench) -> Found:
    """Find the fewest trees that keep the budget on the search rows.

    Raises:
        ModelError: The model cannot be read or run.
    """
    graph = read_graph(bench.bundle.model_path)
    ensemble = find_ensemble(graph)
    if ensemble is None:
        return Found(METHOD, reason="it is no ensemble of trees")
    if ensemble.n_trees <= _FEWEST:
        return Found(METHOD, reason=f"it has {ensemble.n_trees} trees only")
    all_trees, ones = np.arange(ensemble.n_trees), np.ones(ensemble.n_trees)
    whole = (_version(graph, ensemble, all_trees, ones),) if has_idle_entries(ensemble) else ()
    if bench.config.max_drop == 0:
        # That fewer trees changed no answer on some rows would be luck.
        idle = "" if whole else "a budget of 0 keeps all trees, and their leaves are lean already"
        return Found(METHOD, whole, reason=idle)
    answers = tree_answers(ensemble, _rows(bench, graph, ensemble))
    order = choose_trees(answers, is_average=ensemble.is_average)
    sizes = np.unique(np.geomspace(1, ensemble.n_trees, _OPTIONS).round().astype(int))

    def build(n_trees: int) -> Compressed:
        chosen = order[:n_trees]
        if n_trees == ensemble.n_trees:
            return _version(graph, ensemble, all_trees, ones)
        factors = fitted_weights(answers, chosen, is_average=ensemble.is_average)
        return _version(graph, ensemble, chosen, factors)

    best = _fewest(bench, [int(size) for size in sizes], build)
    last = round(_HARDLY_FEWER * ensemble.n_trees)
    if best is None:
        return Found(METHOD, whole or (build(last),))
    rungs = {round(best * more) for more in _GENTLER}
    if not whole:
        rungs.add(last)
    fewer = [build(size) for size in sorted(rungs) if best <= size < ensemble.n_trees]
    return Found(METHOD, tuple(fewer) + whole or (build(best),))


def _rows(bench: Bench, graph: Graph, ensemble: TreeEnsemble) -> NDArray[np.float32]:
    """Return what flows into the trees on the rows to learn from."""
    copies = min(bench.config.copies, _MAX_FIT_ROWS // max(bench.fit.n_rows, 1) - 1)
    feeds = bench.rows_to_learn(_MAX_FIT_ROWS, max(copies, 0))
    if ensemble.source in feeds:
        return feeds[ensemble.source].astype(np.float32)
    parts = [batch[ensemble.source] for batch in run_taps(graph, [ensemble.source], feeds)]
    return np.concatenate(parts).astype(np.float32)


def _fewest(bench: Bench, sizes: list[int], build: Callable[[int], Compressed]) -> int | None:
    """Return the smallest size that passes, by bisection; None when none did."""
    low, high, best = 0, len(sizes), None
    for _ in range(bench.config.max_evaluations):
        if low >= high:
            break
        middle = (low + high) // 2
        if bench.is_good(build(sizes[middle]).model, METHOD):
            best, high = sizes[middle], middle
        else:
            low = middle + 1
    return best


def _version(
    graph: Graph,
    ensemble: TreeEnsemble,
    chosen: NDArray[np.int64],
    factors: NDArray[np.float64],
) -> Compressed:
    n_kept = int((factors > 0).sum())
    is_whole = n_kept == ensemble.n_trees
    text = f"{n_kept} of {ensemble.n_trees} trees kept" + (
        ", without entries of leaves that add nothing" if is_whole else ""
    )
    trees = ensemble.trees[chosen[factors > 0]]
    nodes = int(np.isin(ensemble.values["nodes_treeids"], trees).sum())
    return Compressed(
        method=METHOD,
        change=f"{METHOD} ({text})",
        model=keep_trees(graph, ensemble, chosen, factors),
        measures=(
            Measure(name="trees", value=n_kept, unit="count", baseline=ensemble.n_trees),
            Measure(name="tree_nodes", value=nodes, unit="count", baseline=ensemble.n_nodes),
        ),
        details={"trees": n_kept},
        packages=onnx_versions(),
        notes=(text,),
    )
