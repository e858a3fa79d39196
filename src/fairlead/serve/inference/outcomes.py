"""The last requests and what became of them, for rollouts that decide while the server runs.

What a request costs here is one tuple; columns are filled some hundred requests at a time. A
hundred thousand outcomes take about five megabytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairlead.core.errors import FairleadError
from fairlead.measure.quality import predicted
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.served import ServedRequest

__all__ = ["OutcomeRing"]

_MAX_PREDICTIONS = 1024
_MAX_KEPT_BYTES = 1 << 16
_MAX_LONG_BYTES = 16 << 20
"""Memory for predictions of requests with several rows; the oldest are forgotten first."""
_FOLD = 256
_ID_BYTES = 20
"""Ids that are longer, or not ASCII, take more memory."""


class _Fresh(NamedTuple):
    """An outcome that is not in its columns yet."""

    id: str
    arm: Arm
    status: int
    run_ms: float
    total_ms: float
    at: float
    output: NDArray[Any] | None


class OutcomeRing:
    """A fixed number of outcomes; the oldest is forgotten first, and readers are told so."""

    def __init__(self, capacity: int = 100_000) -> None:
        """Remember up to `capacity` requests."""
        self._capacity = capacity
        self._last = 0
        self._fresh: list[_Fresh] = []
        self._values: list[Any] = []
        self._who: list[tuple[str, str]] = []
        # Memory that was never written to is not taken from the machine.
        self._ids = np.zeros(capacity, f"S{_ID_BYTES}")
        self._odd_ids: dict[int, str] = {}
        self._arms = np.zeros(capacity, np.uint16)
        self._statuses = np.zeros(capacity, np.uint16)
        self._times_ms = np.zeros((capacity, 2), np.float32)
        self._at = np.zeros(capacity)
        self._long: deque[tuple[int, int]] = deque()
        self._long_bytes = 0

    def observe(self, requests: Sequence[ServedRequest]) -> None:
        """Remember requests, but for those that were only probes."""
        fresh = self._fresh
        for served in requests:
            if not served.is_probe:
                fresh.append(
                    _Fresh(
                        served.id,
                        served.arm,
                        served.status,
                        served.run_ms,
                        served.total_ms,
                        served.at,
                        _kept(served),
                    )
                )
        if len(fresh) >= _FOLD or not requests:
            self._fold()

    def read(self, after: int, limit: int) -> dict[str, Any]:
        """Return up to `limit` outcomes whose number is greater than `after`, as JSON.

        `next` is the number to go on from, `missed` how many were forgotten in between.
        """
        self._fold()
        oldest = max(1, self._last - self._capacity + 1)
        first = max(after + 1, oldest)
        last = min(self._last, first + limit - 1)
        outcomes = [self._document(seq) for seq in range(first, last + 1)]
        return {
            "outcomes": outcomes,
            "next": last if outcomes else max(after, 0),
            "missed": max(0, first - max(after, 0) - 1),
        }

    def _document(self, seq: int) -> dict[str, Any]:
        place = (seq - 1) % self._capacity
        arm, version = self._who[self._arms[place]]
        run_ms, total_ms = self._times_ms[place].tolist()
        value = self._values[place]
        return {
            "seq": seq,
            "id": self._odd_ids.get(place) or self._ids[place].decode(),
            "arm": arm,
            "version": version,
            "status": int(self._statuses[place]),
            "run_ms": run_ms,
            "total_ms": total_ms,
            "prediction": value.tolist() if isinstance(value, np.ndarray) else value,
            "at": float(self._at[place]),
        }

    def _fold(self) -> None:
        """Move the fresh outcomes into their columns."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        if len(fresh) > self._capacity:
            self._last += len(fresh) - self._capacity
            fresh = fresh[-self._capacity :]
        places = (self._last + np.arange(len(fresh))) % self._capacity
        self._arms[places] = [self._number(item.arm) for item in fresh]
        self._statuses[places] = [item.status for item in fresh]
        self._times_ms[places] = [(item.run_ms, item.total_ms) for item in fresh]
        self._at[places] = [item.at for item in fresh]
        self._ids[places] = [item.id if _is_short(item.id) else "" for item in fresh]
        for item, value, place in zip(fresh, _values(fresh), places.tolist(), strict=True):
            self._last += 1
            if place >= len(self._values):
                self._values.extend([None] * (place + 1 - len(self._values)))
            self._values[place] = value
            if not _is_short(item.id):
                self._odd_ids[place] = item.id
            elif self._odd_ids:
                self._odd_ids.pop(place, None)
            if isinstance(value, np.ndarray):
                self._keep_long(value)

    def _keep_long(self, value: NDArray[Any]) -> None:
        self._long.append((self._last, value.nbytes))
        self._long_bytes += value.nbytes
        while self._long_bytes > _MAX_LONG_BYTES:
            seq, size = self._long.popleft()
            self._long_bytes -= size
            if seq > self._last - self._capacity:
                self._values[(seq - 1) % self._capacity] = None

    def _number(self, arm: Arm) -> int:
        who = (arm.name, arm.version)
        if who not in self._who:
            self._who.append(who)
        return self._who.index(who)


def _is_short(request_id: str) -> bool:
    return len(request_id) <= _ID_BYTES and request_id.isascii() and "\0" not in request_id


def _kept(served: ServedRequest) -> NDArray[Any] | None:
    """Return the output that holds the prediction."""
    outputs = served.outputs
    if outputs is None:
        return None
    output = outputs.get(served.arm.bundle.manifest.prediction_output)
    if output is None or output.ndim == 0:
        return None
    if output.nbytes > _MAX_KEPT_BYTES:
        output = output[:_MAX_PREDICTIONS].copy()
    return output


def _values(fresh: Sequence[_Fresh]) -> list[Any]:
    """Return the prediction of each outcome: one value, an array for several rows, or None."""
    values: list[Any] = [None] * len(fresh)
    groups: dict[Arm, list[int]] = {}
    for place, item in enumerate(fresh):
        if item.output is not None:
            groups.setdefault(item.arm, []).append(place)
    for arm, places in groups.items():
        outputs = [output for p in places if (output := fresh[p].output) is not None]
        found = _predicted(arm, outputs)
        for place, value in zip(places, found, strict=True):
            values[place] = value
    return values


def _predicted(arm: Arm, outputs: list[NDArray[Any]]) -> list[Any]:
    manifest = arm.bundle.manifest
    try:
        joined = np.concatenate([output[:_MAX_PREDICTIONS] for output in outputs])
        found = predicted(manifest, {manifest.prediction_output: joined})
    except (FairleadError, ValueError, TypeError, IndexError):
        if len(outputs) > 1:
            return [value for output in outputs for value in _predicted(arm, [output])]
        # A model of another kind has no single prediction per row.
        return [None]
    ends = np.cumsum([min(len(output), _MAX_PREDICTIONS) for output in outputs]).tolist()
    starts = [0, *ends[:-1]]
    return [
        found[start].item() if end - start == 1 and found.dtype.kind != "O"
        else found[start] if end - start == 1
        else found[start:end].copy()
        for start, end in zip(starts, ends, strict=True)
    ]  # fmt: skip
