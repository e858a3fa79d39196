"""Tree ensembles in ONNX graphs: read, evaluated tree by tree, and written with fewer trees.

Every converter (skl2onnx, onnxmltools) writes a forest or a boosted ensemble as one node whose
answer is a sum over trees. What a tree adds to the sum is therefore known per row, and a subset
with other weights is the same node with fewer entries and scaled leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph, write_graph
from fairlead.backends.onnx_layers import copy_graph

__all__ = [
    "TreeEnsemble",
    "choose_trees",
    "find_ensemble",
    "fitted_weights",
    "has_idle_entries",
    "keep_trees",
    "tree_answers",
]

_KINDS = {"TreeEnsembleClassifier": "class", "TreeEnsembleRegressor": "target"}
_NODES = (
    "nodes_treeids",
    "nodes_nodeids",
    "nodes_featureids",
    "nodes_values",
    "nodes_modes",
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_missing_value_tracks_true",
    "nodes_hitrates",
)
_SWEEPS = 60
_RIDGE = 1e-6
_REFIT = 1.1
"""All weights are fitted again whenever a tenth more trees are chosen: after every tree, that would
take minutes for a thousand trees."""


@dataclass(frozen=True)
class TreeEnsemble:
    """One tree node of a graph.

    Attributes:
        place: Its index among the nodes of the graph.
        source: Tensor that it reads, shape (n_rows, n_features).
        kind: `class` or `target`, the prefix of its attributes.
        values: Attribute → numbers or text.
        trees: Ids of the trees, in order of appearance.
        is_average: Whether every tree carries the same mass, as in a forest.
    """

    place: int
    source: str
    kind: str
    values: dict[str, NDArray[Any]]
    trees: NDArray[np.int64]
    is_average: bool

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.trees)

    @property
    def n_nodes(self) -> int:
        """Number of nodes of all trees, leaves counted."""
        return len(self.values["nodes_treeids"])


def find_ensemble(model: Graph) -> TreeEnsemble | None:
    """Return the only tree node of a graph, or None when there is none, or more than one."""
    places = [i for i, node in enumerate(model.graph.node) if node.op_type in _KINDS]
    if len(places) != 1:
        return None
    node = model.graph.node[places[0]]
    kind = _KINDS[node.op_type]
    values = {item.name: _read(item) for item in node.attribute}
    if f"{kind}_weights" not in values or not len(values.get("nodes_treeids", ())):
        return None
    trees = np.array(list(dict.fromkeys(values["nodes_treeids"].tolist())), np.int64)
    aggregate = str(values.get("aggregate_function", np.array("SUM")).item())
    if aggregate not in ("SUM", "AVERAGE"):
        return None
    is_forest = aggregate == "AVERAGE" or _has_equal_mass(values, kind, trees)
    return TreeEnsemble(places[0], node.input[0], kind, values, trees, is_forest)


def _read(item: Any) -> NDArray[Any]:  # noqa: ANN401 (untyped library)
    if item.strings:
        return np.array([text.decode() for text in item.strings], dtype=object)
    if item.floats:
        return np.array(item.floats, np.float64)
    if item.ints:
        return np.array(item.ints, np.int64)
    if item.s:
        return np.array(item.s.decode())
    return np.array(item.i if item.type == item.INT else item.f)


def _has_equal_mass(values: dict[str, NDArray[Any]], kind: str, trees: NDArray[np.int64]) -> bool:
    """Whether the leaves of every tree carry one and the same total, as shares of classes do."""
    if kind != "class" or str(values.get("post_transform", np.array("NONE")).item()) != "NONE":
        return False
    leaf = values["class_treeids"] * (values["class_nodeids"].max() + 1) + values["class_nodeids"]
    _, place = np.unique(leaf, return_inverse=True)
    sums = np.bincount(place, values["class_weights"])
    return bool(np.allclose(sums, 1 / len(trees), rtol=1e-3))


def tree_answers(ensemble: TreeEnsemble, rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return what every tree adds to the sum.

    Args:
        ensemble: The tree node.
        rows: Shape (n_rows, n_features), what flows into the node.

    Returns:
        Shape (n_trees, n_rows, n_outputs), float32.
    """
    kind, values = ensemble.kind, ensemble.values
    ids = values[f"{kind}_ids"]
    n_outputs = int(ids.max()) + 1
    found = np.zeros((ensemble.n_trees, len(rows), n_outputs), np.float32)
    table = np.asarray(rows, np.float32)
    for place, tree in enumerate(ensemble.trees):
        own = np.flatnonzero(values["nodes_treeids"] == tree)
        leaves = _leaves(values, own, table)
        weights = np.flatnonzero(values[f"{kind}_treeids"] == tree)
        names = values["nodes_nodeids"][own]
        position = {int(name): i for i, name in enumerate(names)}
        answer = np.zeros((len(own), n_outputs), np.float32)
        where = np.array([position[int(name)] for name in values[f"{kind}_nodeids"][weights]])
        np.add.at(answer, (where, ids[weights]), values[f"{kind}_weights"][weights])
        found[place] = answer[leaves]
    return found


def _leaves(
    values: dict[str, NDArray[Any]], own: NDArray[np.int64], rows: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the position of the leaf that every row ends in, among the nodes of one tree."""
    names = values["nodes_nodeids"][own]
    position = np.zeros(int(names.max()) + 1, np.int64)
    position[names] = np.arange(len(own))
    modes = values["nodes_modes"][own]
    features = values["nodes_featureids"][own]
    limits = values["nodes_values"][own].astype(np.float32)
    yes = position[values["nodes_truenodeids"][own]]
    no = position[values["nodes_falsenodeids"][own]]
    tracks = values.get("nodes_missing_value_tracks_true")
    missing = np.zeros(len(own), bool) if tracks is None else tracks[own].astype(bool)
    is_leaf = modes == "LEAF"
    at = np.zeros(len(rows), np.int64)
    open_rows = np.flatnonzero(~is_leaf[at])
    while len(open_rows):
        node = at[open_rows]
        x, limit = rows[open_rows, features[node]], limits[node]
        goes = _compare(modes[node], x, limit) | (np.isnan(x) & missing[node])
        at[open_rows] = np.where(goes, yes[node], no[node])
        open_rows = open_rows[~is_leaf[at[open_rows]]]
    return at


def _compare(
    modes: NDArray[Any], x: NDArray[np.float32], limit: NDArray[np.float32]
) -> NDArray[np.bool_]:
    goes = np.zeros(len(x), bool)
    for mode in set(modes.tolist()):
        here = modes == mode
        goes[here] = {
            "BRANCH_LEQ": np.less_equal,
            "BRANCH_LT": np.less,
            "BRANCH_GTE": np.greater_equal,
            "BRANCH_GT": np.greater,
            "BRANCH_EQ": np.equal,
            "BRANCH_NEQ": np.not_equal,
        }[mode](x[here], limit[here])
    return goes


def choose_trees(answers: NDArray[np.float32], *, is_average: bool) -> NDArray[np.int64]:
    """Order trees so that every beginning of the order stands for the whole as well as it can.

    Orthogonal matching pursuit on the sum of all trees, without labels: the next tree is the one
    that explains most of what is left (Mallat & Zhang, IEEE Transactions on Signal Processing
    41, 1993). Everything happens on the inner products of trees.

    Args:
        answers: Shape (n_trees, n_rows, n_outputs).
        is_average: Whether weights must keep the total mass.

    Returns:
        Shape (n_trees,): places of the trees, the most needed first.
    """
    gram = _gram(answers)
    wanted = gram.sum(axis=1)
    energy = np.maximum(np.diag(gram), 1e-12)
    chosen: list[int] = []
    fitted = 0
    weights = np.zeros(len(gram))
    left = np.ones(len(gram), bool)
    for _ in range(len(gram)):
        rest = wanted - gram @ weights
        gain = np.where(left, rest / np.sqrt(energy), -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        left[best] = False
        weights[best] = max(rest[best] / energy[best], 0.0)
        if len(chosen) >= _REFIT * fitted:
            fitted = len(chosen)
            places = np.array(chosen)
            weights[chosen] = _weights_on(gram, wanted, places, weights[chosen], sweeps=2)
        if is_average and weights.sum() > 0:
            weights *= len(gram) / weights.sum()
    return np.array(chosen)


def fitted_weights(
    answers: NDArray[np.float32], chosen: NDArray[np.int64], *, is_average: bool
) -> NDArray[np.float64]:
    """Return factors ≥ 0 for some trees, so that their sum is closest to that of all trees."""
    gram = _gram(answers)
    start = np.full(len(chosen), len(gram) / len(chosen))
    found = _weights_on(gram, gram.sum(axis=1), chosen, start, sweeps=_SWEEPS)
    if is_average and found.sum() > 0:
        found *= len(gram) / found.sum()
    return found


def _gram(answers: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    return np.asarray(flat @ flat.T / flat.shape[1])


def _weights_on(
    gram: NDArray[np.float64],
    wanted: NDArray[np.float64],
    chosen: NDArray[np.int64],
    start: NDArray[np.float64],
    *,
    sweeps: int,
) -> NDArray[np.float64]:
    """Solve non-negative least squares on some trees by coordinate descent."""
    part = gram[np.ix_(chosen, chosen)]
    goal, weights = wanted[chosen], start.copy()
    size = np.diag(part) * (1 + _RIDGE) + 1e-15
    pull = part @ weights
    for _ in range(sweeps):
        for i in range(len(chosen)):
            new = max(weights[i] + (goal[i] - pull[i]) / size[i], 0.0)
            if new != weights[i]:
                pull += part[:, i] * (new - weights[i])
                weights[i] = new
    return weights


def keep_trees(
    model: Graph, ensemble: TreeEnsemble, chosen: NDArray[np.int64], factors: NDArray[np.float64]
) -> bytes:
    """Return the bytes of a model with only some trees, their leaves scaled.

    Args:
        model: The graph that the ensemble was found in; it is not changed.
        ensemble: Its tree node.
        chosen: Places of the trees that stay.
        factors: What their leaves are multiplied with, shape of `chosen`.
    """
    from onnx import helper

    copy = copy_graph(model)
    node, kind, values = copy.graph.node[ensemble.place], ensemble.kind, ensemble.values
    is_used = factors > 0
    factor = dict(zip(ensemble.trees[chosen[is_used]].tolist(), factors[is_used], strict=True))
    in_nodes = np.isin(values["nodes_treeids"], list(factor))
    in_leaves = np.isin(values[f"{kind}_treeids"], list(factor)) & _says_something(values, kind)
    names = {tree: place for place, tree in enumerate(factor)}
    is_mean = str(values.get("aggregate_function", np.array("SUM")).item()) == "AVERAGE"
    scale = 1 / ensemble.n_trees if is_mean else 1.0
    kept = []
    for item in node.attribute:
        array = values[item.name]
        if item.name in _NODES and array.ndim:
            array = array[in_nodes]
        elif item.name.startswith(f"{kind}_") and array.ndim and len(array) == len(in_leaves):
            if item.name == f"{kind}_weights":
                by = np.array([factor.get(t, 0.0) for t in values[f"{kind}_treeids"].tolist()])
                array = array * by * scale
            array = array[in_leaves]
        if item.name.endswith("_treeids"):
            array = np.array([names[tree] for tree in array.tolist()], np.int64)
        if item.name == "aggregate_function":
            array = np.array("SUM")
        if item.name != "nodes_hitrates":
            kept.append((item.name, array))
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, _plain(array)) for name, array in kept)
    return write_graph(copy)


def has_idle_entries(ensemble: TreeEnsemble) -> bool:
    """Whether leaves have entries of 0, which `keep_trees` leaves out."""
    return not _says_something(ensemble.values, ensemble.kind).all()


def _says_something(values: dict[str, NDArray[Any]], kind: str) -> NDArray[np.bool_]:
    """Return which entries of leaves matter: zeros add nothing, but a leaf needs one entry."""
    trees, leaves = values[f"{kind}_treeids"], values[f"{kind}_nodeids"]
    _, first = np.unique(trees * (int(leaves.max()) + 1) + leaves, return_index=True)
    matters = np.asarray(values[f"{kind}_weights"] != 0)
    matters[first] = True
    return matters


def _plain(array: NDArray[Any]) -> Any:  # noqa: ANN401 (what onnx takes)
    return array.tolist() if array.ndim else array.item()
