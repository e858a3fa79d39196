"""Ranges of activations: what a static scale is chosen from.

One pass over the calibration set collects a histogram per tensor; every published way of choosing
a range reads from it, so trying another one costs no further run of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import Graph
from fairlead.backends.onnx_layers import run_taps
from fairlead.core.ports import Array, Feeds

__all__ = ["RangeMethod", "TensorStatistics", "choose_range", "collect_statistics", "ranges_of"]

RangeMethod = Literal["minmax", "entropy", "percentile", "moving-average"]

_BINS = 2048
_LEVELS = 128
_SMOOTHING = 0.1
"""Weight of the newest batch in the moving average."""
_TINY = 1e-30
"""Below it steps of a histogram may be smaller than the smallest 32-bit number."""


@dataclass
class TensorStatistics:
    """What was seen of one activation.

    Attributes:
        lowest: Smallest finite value.
        highest: Largest finite value.
        average_low: Moving average of the smallest value of a batch.
        average_high: Moving average of the largest value of a batch.
        counts: Histogram of absolute values, shape (2048,).
        top: Upper end of the histogram.
        channel_peaks: Largest absolute value per position of the last axis.
        n_missing: Values that were NaN or infinite.
    """

    lowest: float = np.inf
    highest: float = -np.inf
    average_low: float = 0.0
    average_high: float = 0.0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_BINS))
    top: float = 0.0
    channel_peaks: NDArray[np.float64] | None = None
    n_missing: int = 0

    def add(self, values: Array) -> None:
        """Take one more batch into account."""
        numbers = values.astype(np.float32)
        is_finite = np.isfinite(numbers)
        if not is_finite.all():
            self.n_missing += int((~is_finite).sum())
            numbers = np.where(is_finite, numbers, 0)
        if numbers.size == 0:
            return
        low, high = float(numbers.min()), float(numbers.max())
        is_first = not np.isfinite(self.lowest)
        pace = 1.0 if is_first else _SMOOTHING
        self.average_low += pace * (low - self.average_low)
        self.average_high += pace * (high - self.average_high)
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        self._count(np.abs(numbers), max(abs(low), abs(high)))
        self._peak(np.abs(numbers))

    def _count(self, sizes: NDArray[np.float32], top: float) -> None:
        if top > self.top:
            self._stretch(top * 1.0001)
        if self.top > 0:
            # In 32 bits there are no 2,048 steps below the smallest numbers.
            fine = sizes.astype(np.float64) if self.top < _TINY else sizes
            found, _ = np.histogram(fine, bins=_BINS, range=(0.0, self.top))
            self.counts += found

    def _stretch(self, top: float) -> None:
        """Move what was counted into wider bins."""
        if self.top > 0:
            middles = (np.arange(_BINS) + 0.5) * self.top / _BINS
            places = np.minimum((middles / top * _BINS).astype(int), _BINS - 1)
            self.counts = np.bincount(places, weights=self.counts, minlength=_BINS).astype(
                np.float64
            )
        self.top = top

    def _peak(self, sizes: NDArray[np.float32]) -> None:
        if sizes.ndim < 2:
            return
        peaks = sizes.reshape(-1, sizes.shape[-1]).max(axis=0).astype(np.float64)
        if self.channel_peaks is not None and self.channel_peaks.shape == peaks.shape:
            peaks = np.maximum(peaks, self.channel_peaks)
        self.channel_peaks = peaks


def collect_statistics(
    model: Graph, tensors: Iterable[str], feeds: Feeds, *, batch_rows: int = 16
) -> dict[str, TensorStatistics]:
    """Run the calibration set once and describe the activations.

    Args:
        model: The graph in fp32.
        tensors: Names of activations, or of inputs of the model.
        feeds: The calibration set, one array per input.
        batch_rows: Rows per run.

    Returns:
        Name → statistics; tensors that are no floats are left out.

    Raises:
        ModelError: The model cannot be run.
    """
    names = list(dict.fromkeys(tensors))
    found: dict[str, TensorStatistics] = {}
    for values in run_taps(model, names, feeds, batch_rows=batch_rows):
        for name, array in values.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                found.setdefault(name, TensorStatistics()).add(array)
    for name in names:
        if name in feeds and feeds[name].dtype.kind == "f":
            for start in range(0, len(feeds[name]), batch_rows):
                piece = feeds[name][start : start + batch_rows]
                found.setdefault(name, TensorStatistics()).add(piece)
    return found


def choose_range(
    seen: TensorStatistics, method: RangeMethod, *, percentile: float = 99.99
) -> tuple[float, float]:
    """Choose the range of one activation that 8 bits will span; it always holds zero.

    `minmax` takes everything that was seen. `moving-average` smooths the ends over the batches
    (Jacob et al., CVPR 2018). `percentile` cuts the largest sizes off. `entropy` cuts where the
    Kullback-Leibler divergence between the values and their 128 levels is least (Migacz, GTC
    2017).

    Args:
        seen: What calibration saw.
        method: How to choose.
        percentile: Share of the values inside the range, in percent; only for `percentile`.
    """
    low, high = min(seen.lowest, 0.0), max(seen.highest, 0.0)
    if not np.isfinite([low, high]).all() or high - low <= 0:
        return 0.0, 1.0
    if method == "moving-average":
        low, high = min(seen.average_low, 0.0), max(seen.average_high, 0.0)
        return (low, high) if high > low else (0.0, 1.0)
    if method == "minmax" or seen.counts.sum() == 0:
        return low, high
    edge = _percentile(seen, percentile) if method == "percentile" else _entropy(seen.counts)
    limit = edge * seen.top / _BINS
    return max(low, -limit), min(high, limit)


def _percentile(seen: TensorStatistics, percentile: float) -> int:
    share = np.cumsum(seen.counts) / seen.counts.sum()
    return int(np.searchsorted(share, percentile / 100.0)) + 1


def _entropy(counts: NDArray[np.float64]) -> int:
    """Return the number of bins to keep."""
    last = int(np.flatnonzero(counts)[-1]) + 1
    # ReLU leaves a spike at zero that says nothing about where to cut.
    body = counts.copy()
    body[0] = body[1] if len(body) > 1 else body[0]
    best, best_divergence = last, np.inf
    for n_bins in range(_LEVELS, last + 1, 16):
        divergence = _divergence(body, n_bins)
        if divergence < best_divergence:
            best, best_divergence = n_bins, divergence
    return best


def _divergence(counts: NDArray[np.float64], n_bins: int) -> float:
    kept = counts[:n_bins]
    target = kept.copy()
    target[-1] += counts[n_bins:].sum()
    places = np.arange(n_bins) * _LEVELS // n_bins
    sums = np.bincount(places, weights=kept, minlength=_LEVELS)
    filled = np.bincount(places, weights=kept > 0, minlength=_LEVELS)
    spread = np.where(kept > 0, (sums / np.maximum(filled, 1))[places], 0.0)
    p, q = target / max(target.sum(), 1e-12), spread / max(spread.sum(), 1e-12)
    is_used = p > 0
    return float(np.sum(p[is_used] * np.log(p[is_used] / np.maximum(q[is_used], 1e-10))))


def ranges_of(
    seen: Mapping[str, TensorStatistics], method: RangeMethod, percentile: float
) -> dict[str, tuple[float, float]]:
    """Return the chosen range of every activation."""
    return {name: choose_range(one, method, percentile=percentile) for name, one in seen.items()}
