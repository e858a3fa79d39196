"""Padding: how much of it the rows carry, and whether the model can do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fairlead.core.errors import FairleadError
from fairlead.core.ports import Array, Feeds, Runner
from fairlead.measure.latency import Clocks, Ratio, measure_interleaved, speedup
from fairlead.measure.sequence_lengths import PaddingWaste, padding_waste

__all__ = ["SequenceAdvice", "advise_on_padding"]

_ROWS = 16
_NOTABLE = 0.1
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SequenceAdvice:
    """What is known about the padding of a model's sequences.

    Attributes:
        waste: Shares of padding.
        values: Input → what pads it; empty where the model sees its padding.
        gain: How many times as fast rows of like length run together, unpadded beyond the
            longest, as all rows padded as they came; None where that was not measured.
    """

    waste: PaddingWaste
    values: Mapping[str, float] = field(default_factory=dict)
    gain: Ratio | None = None


def advise_on_padding(
    runner: Runner,
    feeds: Feeds,
    *,
    batch_rows: int,
    time_limit_s: float,
    seed: int,
    clocks: Clocks | None = None,
) -> SequenceAdvice | None:
    """Measure padding and prove, on rows at hand, that the model looks away from it.

    Args:
        runner: The model.
        feeds: Typical rows.
        batch_rows: Rows per batch.
        time_limit_s: Time for the measurement of speed.
        seed: Seed of the order in which rows arrive.
        clocks: Where time is read from; see `clocks_for`.

    Returns:
        None for a model whose inputs are not all sequences of free length.
    """
    specs = runner.signature.inputs
    if not all(
        len(spec.shape) > 1 and spec.shape[:2] == (-1, -1) and -1 not in spec.shape[2:]
        for spec in specs
    ):
        return None
    waste = padding_waste(feeds, batch_rows, seed=seed)
    if waste is None:
        return None
    values = _padding_values(feeds, waste)
    if not _looks_away(runner, feeds, waste, values):
        return SequenceAdvice(waste)
    if waste.as_given < _NOTABLE:
        return SequenceAdvice(waste, values)
    gain = _gain(runner, feeds, waste, batch_rows, time_limit_s, clocks)
    return SequenceAdvice(waste, values, gain)


def _padding_values(feeds: Feeds, waste: PaddingWaste) -> dict[str, float]:
    """Return what stands where the padding is; 0 where there is none to look at."""
    width = next(iter(feeds.values())).shape[1]
    beyond = np.arange(width)[None, :] >= waste.lengths[:, None]
    found = {}
    for name, array in feeds.items():
        values = np.asarray(array)[beyond] if array.shape[:2] == beyond.shape else np.zeros(0)
        kinds, counts = np.unique(values, return_counts=True)
        found[name] = float(kinds[counts.argmax()]) if len(kinds) else 0.0
    return found


def _cut(feeds: Feeds, rows: Array, length: int) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array[rows, :length]) for name, array in feeds.items()}


def _looks_away(
    runner: Runner, feeds: Feeds, waste: PaddingWaste, values: Mapping[str, float]
) -> bool:
    """Whether a short row gets the same answer alone and padded to twice its length."""
    usable = np.flatnonzero(waste.lengths > 0)
    rows = usable[np.argsort(waste.lengths[usable])][: max(1, min(4, len(usable)))]
    for row in rows:
        length = int(waste.lengths[row])
        short = _cut(feeds, np.array([row]), length)
        long = {
            name: np.concatenate([array, np.full_like(array, values[name])], axis=1)
            for name, array in short.items()
        }
        try:
            alone, padded = runner.run(short), runner.run(long)
        except FairleadError:
            return False
        if not all(_agree(array, padded[name], length) for name, array in alone.items()):
            return False
    return True


def _agree(alone: Array, padded: Array, length: int) -> bool:
    if padded.ndim > 1 and padded.shape[1] == 2 * length and alone.shape[1] == length:
        padded = padded[:, :length]
    if alone.shape != padded.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, padded))
    size = float(np.abs(alone).max(initial=0.0)) or 1.0
    return bool(np.allclose(alone, padded, rtol=0, atol=_TOLERANCE * size, equal_nan=True))


def _gain(
    runner: Runner,
    feeds: Feeds,
    waste: PaddingWaste,
    batch_rows: int,
    time_limit_s: float,
    clocks: Clocks | None,
) -> Ratio:
    rows = np.flatnonzero(waste.lengths > 0)[:_ROWS]
    ordered = rows[np.argsort(waste.lengths[rows], kind="stable")]
    size = max(1, min(batch_rows, len(rows) // 2 or 1))
    width = next(iter(feeds.values())).shape[1]
    given = [_cut(feeds, rows[at : at + size], width) for at in range(0, len(rows), size)]
    bucketed = [
        _cut(feeds, part, int(waste.lengths[part].max()))
        for at in range(0, len(rows), size)
        for part in [ordered[at : at + size]]
    ]
    timings = measure_interleaved(
        {
            "given": lambda: [runner.run(one) for one in given],
            "bucketed": lambda: [runner.run(one) for one in bucketed],
        },
        blocks=5,
        warm_up=1,
        rows_per_call=len(rows),
        time_limit_s=time_limit_s,
        clocks=clocks,
    )
    return speedup(timings["given"], timings["bucketed"])
