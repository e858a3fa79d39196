"""What a budget is spent in: labels, the user's own metric, vectors, or neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.errors import DataError
from fairlead.measure.answers import judge_answers
from fairlead.measure.budget import QualityDrop, judge_agreement, judge_deviation

__all__ = ["Judge", "UserMetric", "judge_metric", "judge_neighbours", "nearest_neighbours"]

UserMetric = Callable[[Mapping[str, Array], Array | None], Any]
"""Takes the outputs by name and the labels, gives one number, or one per row; higher is better."""

_RESAMPLES = 200
_FEWEST_NEIGHBOURS = 20
_FEWEST_VALUES = 8


@dataclass(frozen=True)
class Judge:
    """Tells how much quality a change cost.

    Attributes:
        manifest: Says the task and which outputs to read.
        budget: Largest drop allowed, as a ratio.
        metric: `auto`, `cosine`, `neighbours`, or the name of the user's function.
        function: The user's function.
        seed: Seed of bootstrap bounds.
    """

    manifest: BundleManifest
    budget: float
    metric: str = "auto"
    function: UserMetric | None = None
    seed: int = 0

    def __call__(
        self, before: Mapping[str, Array], after: Mapping[str, Array], labels: Array | None
    ) -> QualityDrop:
        """Judge the answers of two models to the same rows.

        Raises:
            DataError: The metric cannot be computed on these rows.
        """
        if self.function is not None:
            return judge_metric(
                self.function, before, after, labels, budget=self.budget, seed=self.seed
            )
        if self.metric == "neighbours":
            name = self.manifest.prediction_output
            return judge_neighbours(before[name], after[name], budget=self.budget)
        if self.metric == "cosine":
            name = self.manifest.prediction_output
            return judge_deviation(before[name], after[name], budget=self.budget)
        return judge_answers(self.manifest, before, after, labels, budget=self.budget)

    def neighbours_changed(
        self, before: Mapping[str, Array], after: Mapping[str, Array]
    ) -> float | None:
        """Return the share of rows whose nearest neighbour changed; None where it says nothing."""
        name = self.manifest.prediction_output
        old = before.get(name)
        if self.manifest.task != "other" or old is None or old.dtype.kind != "f":
            return None
        if old.ndim != 2 or len(old) < _FEWEST_NEIGHBOURS or old.shape[1] < _FEWEST_VALUES:
            return None
        if not (np.isfinite(old).all() and np.isfinite(after[name]).all()):
            return None
        return judge_neighbours(old, after[name], budget=self.budget).value


def judge_metric(
    function: UserMetric,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    labels: Array | None,
    *,
    budget: float,
    seed: int = 0,
) -> QualityDrop:
    """Judge a drop of the user's own metric, paired on the same rows.

    One value per row gives the t bound of the mean difference; one number for all rows gives the
    95 % bootstrap bound over rows.

    Args:
        function: Outputs and labels → a number, or one per row; higher is better.
        before: Outputs of the original.
        after: Outputs of the changed model.
        labels: Shape (n_rows,), or None.
        budget: Largest drop allowed, in units of the metric.
        seed: Seed of the bootstrap.

    Raises:
        DataError: The function failed, or gave NaN for the original.
    """
    old, new = _score(function, before, labels), _score(function, after, labels)
    if not np.isfinite(old).all():
        raise DataError(
            f"the metric gives {_shown(old)} for the original model, so no drop can be judged",
            hint="return a finite number, higher is better, for every set of rows",
        )
    n_rows = len(next(iter(before.values())))
    if not np.isfinite(new).all():
        return _drop(math.inf, math.inf, budget, n_rows, n_worse=n_rows)
    if old.ndim:
        change = old - new
        bound = judge_deviation_bound(change)
        worse, better = int((change > 0).sum()), int((change < 0).sum())
        return _drop(float(change.mean()), bound, budget, n_rows, worse, better)
    value = float(old - new)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, n_rows, n_rows)
        truth = None if labels is None else labels[rows]
        one = _score(function, {k: v[rows] for k, v in before.items()}, truth)
        two = _score(function, {k: v[rows] for k, v in after.items()}, truth)
        found.append(float(one - two))
    usable = np.array([item for item in found if math.isfinite(item)])
    upper = float(np.percentile(usable, 95)) if len(usable) else math.inf
    return _drop(value, max(upper, value), budget, n_rows, n_worse=int(value > 0))


def judge_deviation_bound(change: NDArray[np.float64]) -> float:
    """Return the one-sided 95 % bound of a mean, by Student's t where rows are many enough."""
    if len(change) < 2:
        return math.inf
    spread = float(change.std(ddof=1)) / math.sqrt(len(change))
    return float(change.mean()) + 1.645 * (1 + 1.5 / len(change)) * spread


def _score(
    function: UserMetric, outputs: Mapping[str, Array], labels: Array | None
) -> NDArray[np.float64]:
    try:
        value = np.asarray(function(outputs, labels), dtype=np.float64)
    except Exception as exc:
        raise DataError(
            f"the metric failed: {type(exc).__name__}: {exc}".splitlines()[0],
            hint="it is called as metric(outputs, labels): arrays by output name, labels or None",
        ) from exc
    n_rows = len(next(iter(outputs.values())))
    if value.ndim == 0 or value.shape == (n_rows,):
        return value
    raise DataError(
        f"the metric gives an array of shape {list(value.shape)} for {n_rows} rows",
        hint="return one number, or one per row",
    )


def _shown(values: NDArray[np.float64]) -> str:
    if values.ndim == 0:
        return str(float(values))
    return f"{int((~np.isfinite(values)).sum())} values that are not finite"


def _drop(
    value: float, upper: float, budget: float, n_rows: int, n_worse: int, n_better: int = 0
) -> QualityDrop:
    return QualityDrop(
        metric="metric_drop",
        value=value,
        upper=upper,
        budget=budget,
        n_rows=n_rows,
        n_worse=n_worse,
        n_better=n_better,
    )


def judge_neighbours(before: Array, after: Array, *, budget: float) -> QualityDrop:
    """Judge vectors by the share of rows whose nearest other row changed.

    Args:
        before: Vectors of the original, shape (n_rows, n_values).
        after: Vectors of the changed model.
        budget: Largest share allowed.

    Raises:
        DataError: There are fewer than 3 rows, or no vectors.
    """
    if before.ndim != 2 or len(before) < 3 or before.dtype.kind != "f":
        raise DataError(
            f"neighbours need at least 3 rows of vectors; the output has shape "
            f"{list(before.shape)}",
            hint="use the metric `cosine`, or name a function of your own",
        )
    drop = judge_agreement(nearest_neighbours(before), nearest_neighbours(after), budget=budget)
    return drop.model_copy(update={"metric": "neighbours_changed"})


def nearest_neighbours(vectors: Array) -> NDArray[np.int64]:
    """Return, for every row, the place of the other row with the largest cosine."""
    table = np.nan_to_num(vectors.astype(np.float64))
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    alike = table @ table.T
    np.fill_diagonal(alike, -np.inf)
    return np.asarray(np.argmax(alike, axis=1))
