"""Which rows calibrate, which guide the search, and which give the last word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Dataset
from fairlead.core.ports import Feeds
from fairlead.core.report import Finding
from fairlead.measure.calibration import calibration_findings, choose_calibration_rows
from fairlead.optimize.quantization.config import QuantizationConfig

__all__ = ["Parts", "divide"]

_FEWEST_TO_DIVIDE = 24
_SEARCH_SHARE = 1 / 3
_MAX_SEARCH = 512
_CALIBRATION_SHARE = 1 / 4


@dataclass(frozen=True)
class Parts:
    """Disjoint rows.

    Attributes:
        calibration: Rows for the ranges of activations; None when nothing needs any.
        search: Rows that choose between versions.
        last: Rows that nothing was chosen on, for the verdict.
        is_own: Whether the user named the calibration rows.
    """

    calibration: Dataset | None
    search: Dataset
    last: Dataset
    is_own: bool = False

    def findings(self, feeds: tuple[Feeds | None, Feeds]) -> tuple[Finding, ...]:
        """Warn of bad calibration rows and of rows that serve two ends.

        Args:
            feeds: The tensors of the calibration rows and of the last test.
        """
        found: tuple[Finding, ...] = ()
        if feeds[0] is not None:
            found = calibration_findings(feeds[0], feeds[1], is_own=self.is_own)
        if self.search is self.last and self.last.n_rows < _FEWEST_TO_DIVIDE:
            text = f"{self.last.n_rows} rows are too few to keep some for an independent test"
            found += (Finding(level="warning", text=text, advice="give more held-back rows"),)
        return found


def divide(
    rows: Dataset,
    feeds: Feeds,
    calibration: Dataset | None,
    config: QuantizationConfig,
) -> Parts:
    """Divide the held-back rows; the calibration set takes the rows that cover most.

    A single method without a search is judged on all rows at once.

    Args:
        rows: The held-back rows.
        feeds: The same as tensors.
        calibration: Rows of the user's own for the ranges; then none of `rows` is taken.
        config: The settings.
    """
    needs_ranges = config.method in _WITH_RANGES or config.rounding == "gptq"
    left = np.arange(rows.n_rows)
    own = calibration
    if own is not None:
        own = own.take(np.arange(min(own.n_rows, max(config.calibration_rows, 1))))
    if own is None and (needs_ranges or config.method == "auto"):
        own, left = _take_calibration(rows, feeds, config)
    rest = rows if len(left) == rows.n_rows else rows.take(left)
    # One version and no choice: the search has nothing to spoil.
    is_choice = config.method == "auto" or (own is not None and config.allow_mixed)
    if not is_choice or rest.n_rows < _FEWEST_TO_DIVIDE:
        return Parts(own, rest, rest, calibration is not None)
    share = min(_SEARCH_SHARE, _MAX_SEARCH / rest.n_rows)
    search, last = rest.split(share, seed=config.seed)
    return Parts(own, search, last, calibration is not None)


_WITH_RANGES = {"static-int8", "smoothquant", "nncf-int8"}


def _take_calibration(
    rows: Dataset, feeds: Feeds, config: QuantizationConfig
) -> tuple[Dataset | None, NDArray[np.int64]]:
    n_rows = min(config.calibration_rows, int(rows.n_rows * _CALIBRATION_SHARE))
    if n_rows < 1:
        return None, np.arange(rows.n_rows)
    chosen = choose_calibration_rows(feeds, n_rows, seed=config.seed)
    return rows.take(chosen), np.setdiff1d(np.arange(rows.n_rows), chosen)
