"""How much of a batch of sequences is padding, and how little it could be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.ports import Feeds

__all__ = ["PaddingWaste", "padding_waste", "sequence_lengths"]

_FEWEST_STEPS = 4


@dataclass(frozen=True)
class PaddingWaste:
    """Shares of padding under three ways to make batches.

    Attributes:
        lengths: Steps of every row, shape (n_rows,), int64.
        as_given: Share of the steps as the data came.
        to_longest: Share when every batch is as long as its longest row.
        in_buckets: Share when rows of like length share a batch.
    """

    lengths: NDArray[np.int64]
    as_given: float
    to_longest: float
    in_buckets: float


def sequence_lengths(feeds: Feeds) -> NDArray[np.int64] | None:
    """Return the steps of every row up to the last that is not padding; None without sequences.

    A mask says it; without one, token ids are padded by zeros at the end.

    Examples:
        >>> sequence_lengths({"attention_mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]])})
        array([2, 4])
    """
    tables = {
        name: np.asarray(array)
        for name, array in feeds.items()
        if array.ndim == 2 and array.dtype.kind in "iub" and array.shape[1] >= _FEWEST_STEPS
    }
    masks = [array for name, array in tables.items() if "mask" in name.lower()]
    chosen = masks[0] if masks else next(iter(tables.values()), None)
    if chosen is None:
        return None
    filled = chosen != 0
    ends = chosen.shape[1] - np.argmax(filled[:, ::-1], axis=1)
    return np.where(filled.any(axis=1), ends, 0).astype(np.int64)


def padding_waste(feeds: Feeds, batch_rows: int, *, seed: int = 0) -> PaddingWaste | None:
    """Measure the padding of rows in batches; None without sequences.

    Args:
        feeds: One array per input.
        batch_rows: Rows per batch.
        seed: Seed of the order in which rows arrive.
    """
    lengths = sequence_lengths(feeds)
    if lengths is None or not lengths.sum():
        return None
    width = next(a.shape[1] for a in feeds.values() if a.ndim == 2)
    arriving = np.random.default_rng(seed).permutation(lengths)
    used = int(lengths.sum())

    def waste(order: NDArray[np.int64]) -> float:
        steps = sum(
            int(order[at : at + batch_rows].max()) * len(order[at : at + batch_rows])
            for at in range(0, len(order), batch_rows)
        )
        return 1.0 - used / max(steps, 1)

    return PaddingWaste(
        lengths=lengths,
        as_given=1.0 - used / max(width * len(lengths), 1),
        to_longest=waste(arriving),
        in_buckets=waste(np.sort(lengths)),
    )
