"""The calibration set: which rows show a model's activations, and whether they are the right ones.

Few rows that cover the data beat many that repeat it: rows are picked by greedy k-centre (each new
row is the one farthest from all that were picked; Gonzalez, Theoretical Computer Science 38, 1985)
and half of them at random, so that the bulk is there as well as the edges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Array
from fairlead.core.ports import Feeds, first_dimension
from fairlead.core.report import Finding

__all__ = ["calibration_findings", "choose_calibration_rows", "row_distance", "shared_rows"]

_MAX_FEATURES = 256
_MAX_POOL = 5000
_FEWEST = 32
_FAR = 0.5
"""A mean shift of half a standard deviation is more than chance does to a fair sample."""


def choose_calibration_rows(feeds: Feeds, n_rows: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Choose rows that cover the data: half at random, half farthest from what is there.

    Args:
        feeds: The rows to choose from, one array per input.
        n_rows: How many; all when there are fewer.
        seed: Seed of the random half.

    Returns:
        Places of the rows, ascending.
    """
    total = first_dimension(feeds)
    if total <= n_rows:
        return np.arange(total)
    rng = np.random.default_rng(seed)
    pool = np.sort(rng.permutation(total)[:_MAX_POOL])
    table = _standard(_features(feeds)[pool])
    picked = list(rng.choice(len(pool), size=max(n_rows // 2, 1), replace=False))
    gaps = np.full(len(pool), np.inf)
    for place in picked:
        gaps = np.minimum(gaps, np.sum((table - table[place]) ** 2, axis=1))
    while len(picked) < n_rows:
        farthest = int(np.argmax(gaps))
        picked.append(farthest)
        gaps = np.minimum(gaps, np.sum((table - table[farthest]) ** 2, axis=1))
        gaps[farthest] = -1.0
    return np.sort(pool[np.array(sorted(set(picked)))])


def shared_rows(first: Feeds, second: Feeds) -> int:
    """Count rows of the second set that are also in the first, value for value."""
    seen = set(_keys(first))
    return sum(key in seen for key in _keys(second))


def row_distance(reference: Feeds, sample: Feeds) -> float:
    """Return how far the sample's features lie from the reference's, in standard deviations.

    The mean over the tenth of the features that moved most, of the shift of mean and spread. A
    fair sample of n rows is about 2 / sqrt(n) away.
    """
    base, new = _features(reference), _features(sample)
    if base.shape[1] != new.shape[1]:
        return float("inf")
    # Both spreads count, so that a feature that is nearly constant in one set is no alarm.
    spread = np.sqrt((base.var(axis=0) + new.var(axis=0)) / 2)
    spread = np.where(spread > 0, spread, np.maximum(np.abs(base).max(axis=0), 1e-12))
    shift = np.abs(new.mean(axis=0) - base.mean(axis=0)) / spread
    growth = np.abs(new.std(axis=0) - base.std(axis=0)) / spread
    moved = np.sort(np.maximum(shift, growth))[::-1]
    return float(moved[: max(len(moved) // 10, 1)].mean())


def calibration_findings(
    calibration: Feeds, judged: Feeds, *, is_own: bool = False
) -> tuple[Finding, ...]:
    """Warn of a calibration set that is too small, leaks, or shows other data than is judged.

    Args:
        calibration: The rows the ranges are taken from.
        judged: The held-back rows that the budget is tested on.
        is_own: Whether the user named the calibration set; rows that were chosen from the judged
            data because they lie far out are unlike the rest on purpose.
    """
    found: list[Finding] = []
    n_rows = first_dimension(calibration)
    if n_rows < _FEWEST:
        found.append(
            Finding(
                level="warning",
                text=f"only {n_rows} rows calibrate the ranges of the activations",
                advice=f"give at least {_FEWEST} rows, or use dynamic-int8, which needs none",
            )
        )
    shared = shared_rows(calibration, judged)
    if shared:
        found.append(
            Finding(
                level="warning",
                text=f"{shared} of {first_dimension(judged)} judged rows are calibration rows too, "
                "so the test flatters the result",
                advice="remove the repeated rows, or calibrate on other data",
            )
        )
    distance = row_distance(judged, calibration) if is_own else 0.0
    noise = 4.0 / np.sqrt(min(n_rows, first_dimension(judged)))
    if distance > _FAR + noise:
        found.append(
            Finding(
                level="warning",
                text=f"the calibration rows are unlike the judged rows: the features that moved "
                f"most lie {distance:.2f} standard deviations apart",
                advice="calibrate on rows from the same source as those the model will see",
            )
        )
    return tuple(found)


def _features(feeds: Mapping[str, Array]) -> NDArray[np.float64]:
    """Return one row of numbers per row of data; wide tensors become summaries."""
    parts: list[NDArray[np.float64]] = []
    n_rows = first_dimension(feeds)
    for array in feeds.values():
        if array.dtype.kind in "OUS":
            sizes = [[float(len(str(v))) for v in row] for row in array.reshape(n_rows, -1)]
            parts.append(np.array(sizes))
            continue
        table = np.nan_to_num(array.reshape(n_rows, -1).astype(np.float64), posinf=0, neginf=0)
        if table.shape[1] > _MAX_FEATURES:
            places = np.linspace(0, table.shape[1] - 1, _MAX_FEATURES - 4).astype(int)
            ends = (table.mean(axis=1), table.std(axis=1), table.min(axis=1), table.max(axis=1))
            table = np.concatenate([table[:, places], np.stack(ends, axis=1)], axis=1)
        parts.append(table)
    return np.concatenate(parts, axis=1)


def _standard(table: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = table.std(axis=0)
    return np.asarray((table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _keys(feeds: Feeds) -> list[bytes]:
    arrays = [feeds[name] for name in sorted(feeds)]
    return [
        hashlib.blake2b(
            b"\0".join(
                repr(array[row : row + 1].tolist()).encode()
                if array.dtype.kind == "O"
                else np.ascontiguousarray(array[row]).tobytes()
                for array in arrays
            ),
            digest_size=16,
        ).digest()
        for row in range(first_dimension(feeds))
    ]
