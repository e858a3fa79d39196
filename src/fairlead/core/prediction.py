"""What serving writes and monitoring, debugging, rollout and replay read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Dataset

__all__ = ["Prediction", "PredictionBatch", "PredictionLog"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered request as the log remembers it.

    `inputs` and `outputs` hold one value per profiled column (see `measure.profile.flatten`), so
    the log, the reference profile and the drift report speak of the same columns.
    """

    id: str
    service: str
    model: str
    version: str
    bundle_digest: str
    arm: str
    status: int
    """HTTP status of the answer; 200 when it was served."""
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    queue_ms: float
    run_ms: float
    total_ms: float
    batch_rows: int
    """Rows that ran together with this one; 0 when it came from the response cache."""
    trace_id: str = ""
    error: str = ""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class PredictionBatch:
    """Logged predictions as columns.

    Attributes:
        ids: Shape (n_rows,), `str`.
        at: Shape (n_rows,), datetime64[us], UTC.
        inputs: The inputs as a dataset.
        outputs: Name → array of shape (n_rows,).
        fields: Every other field of `Prediction` by name, shape (n_rows,).
    """

    ids: NDArray[np.object_]
    at: NDArray[np.datetime64]
    inputs: Dataset
    outputs: dict[str, NDArray[Any]]
    fields: dict[str, NDArray[Any]]

    @property
    def n_rows(self) -> int:
        """Number of predictions, at least 1."""
        return len(self.ids)


class PredictionLog(Protocol):
    """Append-only memory of predictions."""

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Buffer predictions; `flush` makes them durable."""

    def flush(self) -> None:
        """Write what is buffered, whole or not at all."""

    def read(
        self,
        service: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        version: str | None = None,
        limit: int | None = None,
    ) -> PredictionBatch | None:
        """Return logged predictions in order of time, or None when there are none."""
