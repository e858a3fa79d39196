"""scikit-learn estimators in skops format: audited before anything is constructed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.errors import ModelError, UntrustedError
from fairlead.core.extras import requires

__all__ = ["AUDITED", "load_skops", "parts_of", "save_skops", "unknown_types"]

_NEEDED_BY = "reading a skops file"

AUDITED = frozenset(
    {
        "collections.OrderedDict",
        "functools.partial",
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "lightgbm.sklearn.LGBMRegressor",
        "numpy.dtype",
        "numpy.mean",
        "scipy._lib.array_api_compat.numpy._aliases.asarray",
        "scipy.interpolate._bsplines.BSpline",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.calibration._TemperatureScaling",
        "sklearn.cluster._bisect_k_means._BisectingTree",
        "sklearn.cluster._kmeans._kmeans_single_elkan",
        "sklearn.cluster._kmeans._kmeans_single_lloyd",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Matern",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.gaussian_process.kernels.Sum",
        "sklearn.gaussian_process.kernels.WhiteKernel",
        "sklearn.metrics._dist_metrics.EuclideanDistance",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        "sklearn.utils.validation.check_array",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
        "xgboost.sklearn.XGBRegressor",
    }
)
"""Types that skops does not trust by default and that are safe here.

They hold numbers and settings, or are functions that are named and not called (what a partial
function wraps is audited by itself); boosters read their own format, as they do from a file. Trees
are compiled code that follows indices without looking at the bounds; `_check_trees` does, before
anything is predicted.
"""


def unknown_types(path: Path) -> tuple[str, ...]:
    """Return the types in a skops file that may run code of their own; constructs nothing.

    Raises:
        ModelError: The file is not in skops format.
        MissingExtraError: skops is not installed.
    """
    with requires("sklearn", needed_by=_NEEDED_BY):
        io = importlib.import_module("skops.io")
    try:
        found = set(io.get_untrusted_types(file=path))
    except Exception as exc:
        raise ModelError(
            f"{path} is not a skops file: {_first_line(exc)}",
            hint="save the estimator again with skops.io.dump(estimator, 'model.skops')",
        ) from exc
    return tuple(sorted(found - AUDITED))


def load_skops(path: Path, *, trust: bool = False) -> Any:  # noqa: ANN401 (an estimator)
    """Load an estimator without unpickling anything.

    Args:
        path: The file.
        trust: Whether types that are not known to be harmless may be constructed.

    Raises:
        UntrustedError: The file holds types that may run code, and `trust` is off.
        ModelError: The file cannot be read, or its trees are damaged.
        MissingExtraError: skops is not installed.
    """
    unknown = unknown_types(path)
    if unknown and not trust:
        raise UntrustedError(
            f"{path} holds types that may run code of their own: {', '.join(unknown[:10])}"
            + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""),
            hint="add --trust if you know where the file comes from",
        )
    io = importlib.import_module("skops.io")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = io.load(path, trusted=[*unknown, *AUDITED])
    except Exception as exc:
        raise ModelError(
            f"{path} cannot be loaded: {_first_line(exc)}",
            hint="load it with the libraries and versions that it was saved with",
        ) from exc
    _check_trees(estimator, path)
    return estimator


def save_skops(estimator: Any, path: Path) -> None:  # noqa: ANN401 (an estimator)
    """Write an estimator in skops format.

    Raises:
        ModelError: It holds something that skops cannot write.
    """
    with requires("sklearn", needed_by="writing a skops file"):
        io = importlib.import_module("skops.io")
    try:
        io.dump(estimator, path)
    except OSError:
        raise
    except Exception as exc:
        raise ModelError(
            f"{type(estimator).__name__} cannot be written in skops format: {_first_line(exc)}",
            hint="pack a model that is made of importable estimators and functions",
        ) from exc


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def parts_of(value: Any) -> Iterator[Any]:  # noqa: ANN401 (an estimator)
    """Walk an estimator and everything it is made of, each part once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | type | None):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list | tuple | set):
            waiting.extend(part)
        elif isinstance(part, np.ndarray):
            waiting.extend(part.ravel().tolist() if part.dtype == object else ())
        elif hasattr(part, "__dict__"):
            waiting.extend(vars(part).values())


def _check_trees(estimator: Any, path: Path) -> None:  # noqa: ANN401 (an estimator)
    for part in parts_of(estimator):
        check = _SOUND.get(type(part).__name__)
        if check is not None and not check(part):
            raise ModelError(
                f"{path} holds a {type(part).__name__} whose nodes point outside of it",
                hint="the file is damaged: save the estimator again",
            )


def _is_sound_tree(tree: Any) -> bool:  # noqa: ANN401 (a Cython object)
    left, right = tree.children_left, tree.children_right
    own = np.flatnonzero(left != -1)
    return bool(
        _is_within(left[own], own + 1, tree.node_count)
        and _is_within(right[own], own + 1, tree.node_count)
        and _is_within(tree.feature[own], 0, tree.n_features)
    )


def _is_sound_predictor(predictor: Any) -> bool:  # noqa: ANN401 (untyped library)
    nodes = predictor.nodes
    own = np.flatnonzero(nodes["is_leaf"] == 0)
    inner = nodes[own]
    sets = inner["bitset_idx"][inner["is_categorical"] != 0]
    return bool(
        _is_within(inner["left"].astype(np.int64), own + 1, len(nodes))
        and _is_within(inner["right"].astype(np.int64), own + 1, len(nodes))
        and _is_within(sets, 0, len(predictor.raw_left_cat_bitsets))
    )


def _is_sound_neighbour_tree(tree: Any) -> bool:  # noqa: ANN401 (a Cython object)
    data, index, nodes, _ = tree.get_arrays()
    return bool(
        len(index) == len(data)
        and _is_within(index, 0, len(data))
        and _is_within(nodes["idx_start"], 0, len(data) + 1)
        and _is_within(nodes["idx_end"], 0, len(data) + 1)
    )


def _is_within(values: Any, low: Any, end: int) -> bool:  # noqa: ANN401 (arrays)
    return bool(np.all(values >= low) and np.all(values < end))


_SOUND = {
    "Tree": _is_sound_tree,
    "TreePredictor": _is_sound_predictor,
    "KDTree": _is_sound_neighbour_tree,
    "BallTree": _is_sound_neighbour_tree,
}
