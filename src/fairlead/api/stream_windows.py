"""Sends rows through a running service and reads them back from the prediction log."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from fairlead.api.context import Context
from fairlead.api.row_requests import send_rows
from fairlead.backends.endpoint import ServerHandle
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.core.bundle import Bundle
from fairlead.core.errors import EndpointError
from fairlead.core.ports import Array, first_dimension
from fairlead.core.prediction import PredictionBatch
from fairlead.measure.profile import flatten_inputs

__all__ = ["PlantedShift", "plant_shift", "stream_through"]

_PATIENCE_S = 30.0
_LOOK_S = 0.1
_MOST_SHIFTED = 5


@dataclass(frozen=True)
class PlantedShift:
    """Input tensors with a shift that somebody put there, to see whether it is found.

    Attributes:
        feeds: Input tensors, first dimension the rows.
        columns: Profiled columns that were shifted.
    """

    feeds: dict[str, Array]
    columns: tuple[str, ...]


def stream_through(
    handle: ServerHandle, bundle: Bundle, feeds: Mapping[str, Array], *, context: Context
) -> PredictionBatch:
    """Send rows one by one and return what the prediction log remembers of them.

    Args:
        handle: The running server.
        bundle: What it serves.
        feeds: Input tensors, first dimension the rows.
        context: Workspace and progress.

    Raises:
        EndpointError: A request failed, or the log did not show all rows in time.
    """
    name = f"watch-{uuid.uuid4().hex[:8]}"
    started = datetime.now(UTC) - timedelta(seconds=1)
    total = 0
    for _ in send_rows(handle.endpoint, bundle, feeds, id_prefix=name, progress=context.progress):
        total += 1
    log = ParquetPredictionLog(context.workspace.predictions)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        batch = log.read(handle.endpoint.service, since=started)
        mine = _with_prefix(batch, name)
        if mine is not None and mine.n_rows >= total:
            return mine
        if time.monotonic() > deadline:
            seen = 0 if mine is None else mine.n_rows
            raise EndpointError(
                f"the prediction log shows {seen} of {total} rows after {_PATIENCE_S:g} s",
                hint="look at the server's log in the workspace's services folder",
            )
        time.sleep(_LOOK_S)


def _with_prefix(batch: PredictionBatch | None, prefix: str) -> PredictionBatch | None:
    if batch is None:
        return None
    mask = np.array([str(item).startswith(prefix) for item in batch.ids], dtype=bool)
    if not mask.any():
        return None
    return PredictionBatch(
        ids=batch.ids[mask],
        at=batch.at[mask],
        inputs=batch.inputs.take(mask),
        outputs={name: array[mask] for name, array in batch.outputs.items()},
        fields={name: array[mask] for name, array in batch.fields.items()},
    )


def plant_shift(bundle: Bundle, feeds: Mapping[str, Array], *, size: float) -> PlantedShift:
    """Shift the inputs that vary most; text is replaced in every second row.

    Args:
        bundle: Names the profiled columns.
        feeds: Input tensors, first dimension the rows.
        size: Shift in standard deviations of the rows at hand.
    """
    shifted = {name: _shift_tensor(array, size) for name, array in feeds.items()}
    before = flatten_inputs(bundle.manifest, feeds)
    after = flatten_inputs(bundle.manifest, shifted)
    changed = tuple(name for name in before if not _is_equal(before[name], after[name]))
    return PlantedShift(shifted, changed)


def _shift_tensor(array: Array, size: float) -> Array:
    if array.dtype.kind in "OUS":
        copy = array.copy()
        copy[::2] = "planted by the drill"
        return copy
    if array.dtype.kind == "b":
        return np.ones_like(array)
    table = array.reshape(first_dimension([array]), -1).astype(np.float64)
    spread: Any = np.nan_to_num(np.nanstd(table, axis=0))
    step = spread * size if array.dtype.kind == "f" else np.ceil(spread * size)
    quiet = np.argsort(-spread, kind="stable")[_MOST_SHIFTED:]
    step[quiet] = 0.0
    moved: Array = (table + step).astype(array.dtype).reshape(array.shape)
    return moved


def _is_equal(one: Array, other: Array) -> bool:
    if one.dtype.kind == "f":
        return bool(np.array_equal(one, other, equal_nan=True))
    return bool(np.array_equal(one, other))
