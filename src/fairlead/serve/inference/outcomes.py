"""The last requests and what became of them, for rollouts that decide while the server runs.

What a request costs here is one tuple; columns are filled some hundred requests at a time, so
that an outcome takes the bytes of its numbers and no Python objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.core.errors import FairleadError
from fairlead.measure.quality import predicted
from fairlead.serve.inference.served import ServedRequest, ServedTogether

__all__ = ["Fresh", "OutcomeRing", "Outcomes", "kept_output", "values_of"]

_MAX_PREDICTIONS = 1024
_MAX_KEPT_BYTES = 1 << 16
_MAX_LONG_BYTES = 16 << 20
"""Memory for predictions of requests with several rows; the oldest are forgotten first."""
_FOLD = 256
_ID_BYTES = 36
"""Room for a UUID; ids that are longer, or not ASCII, take more memory."""


class Fresh(NamedTuple):
    """Outcomes of one batch that are not in their columns yet."""

    ids: Sequence[str]
    arm: Answering
    status: int
    run_ms: float
    total_ms: Sequence[float]
    at: float
    output: NDArray[Any] | None
    n_rows: Sequence[int]


class _Packed(Protocol):
    @property
    def manifest(self) -> BundleManifest: ...


class Answering(Protocol):
    """What outcomes need to know of an arm."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> str:
        """The version behind it."""

    @property
    def bundle(self) -> _Packed:
        """What says how its outputs are read."""


class Outcomes(Protocol):
    """Where outcomes are read, whatever keeps them."""

    def read(self, after: int, limit: int) -> dict[str, Any]:
        """Return up to `limit` outcomes whose number is greater than `after`, as JSON.

        `next` is the number to go on from, `missed` how many were forgotten in between.
        """


class OutcomeRing:
    """A fixed number of outcomes; the oldest is forgotten first, and readers are told so."""

    def __init__(self, capacity: int = 100_000) -> None:
        """Remember up to `capacity` requests."""
        self._capacity = capacity
        self._last = 0
        self._fresh: list[Fresh] = []
        self._n_fresh = 0
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
        if isinstance(requests, ServedTogether):
            self._observe_together(requests)
            return
        for served in requests:
            if not served.is_probe:
                output = kept_output(served.arm, served.outputs)
                self._add(
                    Fresh(
                        (served.id,),
                        served.arm,
                        served.status,
                        served.run_ms,
                        (served.total_ms,),
                        served.at,
                        output,
                        () if output is None else (len(output),),
                    )
                )
        if self._n_fresh >= _FOLD or not requests:
            self._fold()

    def _observe_together(self, served: ServedTogether) -> None:
        arm = served.arm
        output = _output(arm, served.outputs)
        self._add(
            Fresh(
                served.ids, arm, 200, served.run_ms, served.total_ms, served.at, output,
                served.n_rows,
            )
        )  # fmt: skip
        is_large = output is not None and output.nbytes > _MAX_KEPT_BYTES
        if is_large or self._n_fresh >= _FOLD:
            self._fold()

    def _add(self, fresh: Fresh) -> None:
        self._fresh.append(fresh)
        self._n_fresh += len(fresh.ids)

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
        fresh, self._fresh, self._n_fresh = self._fresh, [], 0
        if not fresh:
            return
        sizes = [len(item.ids) for item in fresh]
        ids = list(chain.from_iterable([item.ids for item in fresh]))
        values = values_of(fresh)
        skip = max(0, len(ids) - self._capacity)
        ids, values = ids[skip:], values[skip:]
        self._last += skip
        places = (self._last + np.arange(len(ids))) % self._capacity
        self._arms[places] = np.repeat([self._number(item.arm) for item in fresh], sizes)[skip:]
        self._statuses[places] = np.repeat([item.status for item in fresh], sizes)[skip:]
        self._at[places] = np.repeat([item.at for item in fresh], sizes)[skip:]
        self._times_ms[places, 0] = np.repeat([item.run_ms for item in fresh], sizes)[skip:]
        total_ms = list(chain.from_iterable([item.total_ms for item in fresh]))
        self._times_ms[places, 1] = total_ms[skip:]
        self._keep_ids(ids, places)
        self._keep_values(values, int(places[0]))

    def _keep_ids(self, ids: list[str], places: NDArray[np.int64]) -> None:
        text = "".join(ids)
        if len(max(ids, key=len)) <= _ID_BYTES and text.isascii() and "\0" not in text:
            self._ids[places] = ids
            if not self._odd_ids:
                return
        else:
            self._ids[places] = [each if _is_short(each) else "" for each in ids]
        for each, place in zip(ids, places.tolist(), strict=True):
            if not _is_short(each):
                self._odd_ids[place] = each
            else:
                self._odd_ids.pop(place, None)

    def _keep_values(self, values: list[Any], first: int) -> None:
        """Put values into their places, around the end of the ring where they come to it."""
        held, capacity = self._values, self._capacity
        held.extend([None] * (first - len(held)))
        split = min(len(values), capacity - first)
        held[first : first + split] = values[:split]
        held[: len(values) - split] = values[split:]
        for seq, value in enumerate(values, self._last + 1):
            if isinstance(value, np.ndarray):
                self._keep_long(value, seq)
        self._last += len(values)

    def _keep_long(self, value: NDArray[Any], seq: int) -> None:
        self._long.append((seq, value.nbytes))
        self._long_bytes += value.nbytes
        while self._long_bytes > _MAX_LONG_BYTES:
            old, size = self._long.popleft()
            self._long_bytes -= size
            if old > seq - self._capacity:
                self._values[(old - 1) % self._capacity] = None

    def _number(self, arm: Answering) -> int:
        who = (arm.name, arm.version)
        if who not in self._who:
            self._who.append(who)
        return self._who.index(who)


def _is_short(request_id: str) -> bool:
    return len(request_id) <= _ID_BYTES and request_id.isascii() and "\0" not in request_id


def _output(arm: Answering, outputs: Mapping[str, NDArray[Any]] | None) -> NDArray[Any] | None:
    """Return the output that holds the prediction."""
    if outputs is None:
        return None
    output = outputs.get(arm.bundle.manifest.prediction_output)
    return None if output is None or output.ndim == 0 else output


def kept_output(arm: Answering, outputs: Mapping[str, NDArray[Any]] | None) -> NDArray[Any] | None:
    """Return the rows that are kept of the output that holds the prediction of a request."""
    output = _output(arm, outputs)
    if output is not None and output.nbytes > _MAX_KEPT_BYTES:
        return output[:_MAX_PREDICTIONS].copy()
    return output if output is None else output[:_MAX_PREDICTIONS]


def values_of(fresh: Sequence[Fresh]) -> list[Any]:
    """Return the prediction of each outcome: one value, an array for several rows, or None."""
    groups: dict[Answering, list[Fresh]] = {}
    for item in fresh:
        if item.output is not None:
            groups.setdefault(item.arm, []).append(item)
    found = {arm: iter(_predicted(arm, group)) for arm, group in groups.items()}
    values: list[Any] = []
    for item in fresh:
        if item.output is None:
            values += [None] * len(item.ids)
        else:
            values += islice(found[item.arm], len(item.ids))
    return values


def _predicted(arm: Answering, batches: list[Fresh]) -> list[Any]:
    """Return the prediction of each request of one arm; they all have outputs."""
    manifest = arm.bundle.manifest
    outputs = [item.output for item in batches if item.output is not None]
    n_rows = list(chain.from_iterable([item.n_rows for item in batches]))
    try:
        joined = outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
        found = predicted(manifest, {manifest.prediction_output: joined})
    except (FairleadError, ValueError, TypeError, IndexError):
        if len(batches) > 1:
            return [value for item in batches for value in _predicted(arm, [item])]
        # A model of another kind has no single prediction per row.
        return [None] * len(n_rows)
    if len(found) == len(n_rows) and found.dtype.kind != "O":
        values: list[Any] = found.tolist()
        return values
    ends = np.cumsum(n_rows).tolist()
    starts = [0, *ends[:-1]]
    return [
        found[start].item() if end - start == 1 and found.dtype.kind != "O"
        else found[start] if end - start == 1
        else found[start : min(end, start + _MAX_PREDICTIONS)].copy()
        for start, end in zip(starts, ends, strict=True)
    ]  # fmt: skip
