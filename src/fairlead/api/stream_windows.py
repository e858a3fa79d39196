"""Sends rows through a running service and reads them back from the prediction log."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np

from fairlead.api.context import Context
from fairlead.api.row_requests import send_rows
from fairlead.backends.endpoint import ServerHandle
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.core.bundle import Bundle
from fairlead.core.errors import EndpointError
from fairlead.core.ports import Array
from fairlead.core.prediction import PredictionBatch

__all__ = ["stream_through"]

_PATIENCE_S = 30.0
_LOOK_S = 0.1


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
    requests = send_rows(
        handle.endpoint,
        handle.admin_token,
        bundle,
        feeds,
        id_prefix=name,
        progress=context.progress,
    )
    for _ in requests:
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
