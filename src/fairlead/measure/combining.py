"""The answers of several models made one: mean of scores, majority of labels, best class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairlead.core.dataset import Array
from fairlead.core.ensemble import Combination
from fairlead.core.errors import SignatureError
from fairlead.core.signature import STRING, TensorSpec

__all__ = ["combine", "combined_spec"]


def combine(
    how: Combination,
    arrays: Sequence[Array],
    weights: Sequence[float] = (),
    labels: Sequence[str | int] = (),
) -> Array:
    """Combine the answers of several models.

    Args:
        how: `mean`, `vote`, or `argmax` of one table of scores.
        arrays: Equal shapes, first dimension the rows; for `vote` one label per row.
        weights: One per array; empty weighs all the same.
        labels: What `argmax` chooses from, one per column.

    Returns:
        `mean`: the shape of the arrays. `vote`: shape (n_rows,); of labels with equal weight the
        first in order wins. `argmax`: shape (n_rows,).
    """
    if how == "argmax":
        best = np.argmax(arrays[0].reshape(len(arrays[0]), -1), axis=1)
        named = _labels(labels) if labels else np.arange(np.max(best, initial=0) + 1)
        return np.asarray(named[best])
    shares = np.asarray(weights or np.ones(len(arrays)), np.float64)
    if how == "mean":
        total = sum(array * share for array, share in zip(arrays, shares, strict=True))
        return np.asarray(total / shares.sum(), arrays[0].dtype)
    votes = np.stack([array.reshape(len(array)) for array in arrays])
    known = np.unique(votes)
    counts = np.stack([(shares[:, None] * (votes == label)).sum(axis=0) for label in known])
    winners: Array = known[np.argmax(counts, axis=0)]
    return winners


def _labels(labels: Sequence[str | int]) -> Array:
    if all(isinstance(label, int) for label in labels):
        return np.array(labels, np.int64)
    return np.array([str(label) for label in labels], object)


def combined_spec(
    step: str,
    how: Combination,
    specs: Sequence[TensorSpec],
    weights: Sequence[float] = (),
    labels: Sequence[str | int] = (),
) -> TensorSpec:
    """Return what a combination gives: one output named like the combination.

    Raises:
        SignatureError: The sources cannot be combined so.
    """
    first = specs[0]
    problem = _problem_of_all(specs, weights) or {
        "mean": _problem_of_mean,
        "vote": _problem_of_vote,
        "argmax": _problem_of_argmax,
    }[how](specs, labels)
    if problem:
        raise SignatureError(
            f"step `{step}` {problem}",
            hint="mean wants floats of one shape, vote one label per row, argmax one table",
        )
    if how == "mean":
        return TensorSpec(name=how, dtype=first.dtype, shape=(-1, *first.shape[1:]))
    is_text = how == "argmax" and any(isinstance(label, str) for label in labels)
    dtype = {"vote": first.dtype, "argmax": STRING if is_text else "int64"}[how]
    return TensorSpec(name=how, dtype=dtype, shape=(-1,))


def _problem_of_all(specs: Sequence[TensorSpec], weights: Sequence[float]) -> str:
    if len({spec.shape[1:] for spec in specs}) > 1 or len({spec.dtype for spec in specs}) > 1:
        return f"combines {', '.join(map(str, specs))}, which differ"
    if weights and (len(weights) != len(specs) or min(weights) < 0 or sum(weights) <= 0):
        return f"has the weights {list(weights)} for {len(specs)} sources"
    return ""


def _problem_of_mean(specs: Sequence[TensorSpec], _: Sequence[str | int]) -> str:
    return "" if "float" in specs[0].dtype else f"takes the mean of {specs[0].dtype}"


def _problem_of_vote(specs: Sequence[TensorSpec], _: Sequence[str | int]) -> str:
    is_label = specs[0].shape[1:] in ((), (1,)) and "float" not in specs[0].dtype
    return "" if is_label else f"takes a vote of {specs[0]}, which is no label"


def _problem_of_argmax(specs: Sequence[TensorSpec], labels: Sequence[str | int]) -> str:
    if len(specs) > 1 or len(specs[0].shape) != 2:
        return "takes the largest of what is not one table of scores"
    width = specs[0].shape[-1]
    if labels and width not in (-1, len(labels)):
        return f"has {len(labels)} labels for {width} scores"
    return ""
