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
        "numpy.dtype",
        "sklearn.tree._tree.Tree",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    }
)
"""Types that skops does not trust by default and that are safe here.

A dtype holds no code. Trees hold none either, but their nodes point at one another by index, and
scikit-learn follows them without looking at the bounds; `_check_trees` does.
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
        kind = type(part).__name__
        if kind == "Tree" and not _is_sound_tree(part):
            raise _damaged(path)
        if kind == "TreePredictor" and not _is_sound_predictor(part):
            raise _damaged(path)


def _is_sound_tree(tree: Any) -> bool:  # noqa: ANN401 (a Cython object)
    left, right = tree.children_left, tree.children_right
    is_leaf = left == -1
    return bool(
        np.all(left[~is_leaf] < tree.node_count)
        and np.all(right[~is_leaf] < tree.node_count)
        and np.all(left[~is_leaf] > np.flatnonzero(~is_leaf))
        and np.all(right[~is_leaf] > np.flatnonzero(~is_leaf))
        and np.all(tree.feature[~is_leaf] >= 0)
        and np.all(tree.feature[~is_leaf] < tree.n_features)
    )


def _is_sound_predictor(predictor: Any) -> bool:  # noqa: ANN401 (untyped library)
    nodes = predictor.nodes
    inner = nodes[nodes["is_leaf"] == 0]
    own = np.flatnonzero(nodes["is_leaf"] == 0)
    bitsets = predictor.raw_left_cat_bitsets
    return bool(
        np.all(inner["left"] > own)
        and np.all(inner["left"] < len(nodes))
        and np.all(inner["right"] > own)
        and np.all(inner["right"] < len(nodes))
        and np.all(inner["bitset_idx"][inner["is_categorical"] != 0] < len(bitsets))
    )


def _damaged(path: Path) -> ModelError:
    return ModelError(
        f"{path} holds a decision tree whose nodes point outside of it",
        hint="the file is damaged: save the estimator again",
    )
