"""Outcomes of one of several workers, in memory that outlives it: what it answered stays known.

The file is the supervisor's. A worker writes down what became of its requests before they are
answered; when it is killed, the supervisor reads what it had not asked for yet. Written is the
output as it is: what it predicts is found out when somebody reads it.

    words: bytes of arms, of the first part, of the second part
    arms: JSON, one line per arm that ever answered
    part: record, record, …; the other part is emptied and used when one is full
    record: length, checksum, number of its first outcome, how many outcomes; then `marshal`

A record counts once the length of its part says so, which is written last, and whole.
"""

from __future__ import annotations

import json
import marshal
import mmap
import struct
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.serve.inference.anonymous_file import anonymous_file
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.outcomes import Fresh, kept_output, values_of
from fairlead.serve.inference.served import ServedRequest, ServedTogether

__all__ = ["OutcomeLog", "new_outcome_file"]

_WORDS_BYTES = 64
_ARMS_BYTES = 1 << 20
_PART_BYTES = 6 << 20
"""Both parts hold some sixty to a hundred thousand requests of one row."""
_RECORD = struct.Struct("<IIQI")
_RAW_BYTES = 64
"""An output that is wider than so many bytes per request is looked at before it is written."""
_TOGETHER = 256


def new_outcome_file() -> int:
    """Return the descriptor of a nameless file for `OutcomeLog`; memory nobody wrote to is free."""
    return anonymous_file("fairlead-outcomes", size=_WORDS_BYTES + _ARMS_BYTES + 2 * _PART_BYTES)


@dataclass(frozen=True)
class _Known:
    """An arm as it was written down; also what stands for its bundle."""

    name: str
    version: str
    manifest: BundleManifest

    @property
    def bundle(self) -> _Known:
        return self


class _Record(NamedTuple):
    """A record and where the next one begins."""

    first: int
    n_outcomes: int
    payload: bytes
    end: int


class OutcomeLog:
    """The last outcomes of a worker; see `OutcomeRing`, whose place it takes."""

    is_prompt = True

    def __init__(self, descriptor: int) -> None:
        """Map a file of `new_outcome_file`, an empty one or one that a worker wrote."""
        self._memory = mmap.mmap(descriptor, _WORDS_BYTES + _ARMS_BYTES + 2 * _PART_BYTES)
        self._words = memoryview(self._memory)[:_WORDS_BYTES].cast("Q")
        self._part = 0
        self._used = 0
        self._next = 1
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._last: tuple[weakref.ref[Arm], int, str] | None = None
        self._mark = (0, 0, 1)
        self._known: tuple[int, list[_Known | None]] = (0, [])

    def __call__(self, requests: Sequence[ServedRequest], /) -> None:
        """Write down what became of requests, but for those that were only probes."""
        if isinstance(requests, ServedTogether):
            self._write(
                requests.arm, requests.ids, 200, requests.run_ms, requests.total_ms, requests.at,
                requests.outputs, requests.n_rows,
            )  # fmt: skip
            return
        for one in requests:
            if not one.is_probe:
                self._write(
                    one.arm, [one.id], one.status, one.run_ms, [one.total_ms], one.at, one.outputs,
                    [one.n_rows],
                )  # fmt: skip

    def read(self, after: int, limit: int) -> dict[str, Any]:
        """Return a page; see `OutcomeRing.read`."""
        arms = self._arms()
        after = max(after, 0)
        outcomes: list[dict[str, Any]] = []
        chosen: list[_Record] = []
        n_chosen = 0
        for record in self._records(after):
            chosen.append(record)
            n_chosen += record.n_outcomes
            if n_chosen >= limit + record.n_outcomes:
                break
        for start in range(0, len(chosen), _TOGETHER):
            outcomes += _documents(chosen[start : start + _TOGETHER], arms)
        outcomes = [item for item in outcomes if item["seq"] > after][: max(0, limit)]
        first = outcomes[0]["seq"] if outcomes else after + 1
        return {
            "outcomes": outcomes,
            "next": outcomes[-1]["seq"] if outcomes else after,
            "missed": first - after - 1,
        }

    def _write(
        self,
        arm: Arm,
        ids: Sequence[str],
        status: int,
        run_ms: float,
        total_ms: Sequence[float],
        at: float,
        outputs: Mapping[str, NDArray[Any]] | None,
        n_rows: Sequence[int],
    ) -> None:
        last = self._last
        if last is None or last[0]() is not arm:
            last = self._last = (weakref.ref(arm), *self._introduced(arm))
        output = None if outputs is None else outputs.get(last[2])
        told: tuple[Any, ...] = ()
        if output is not None and output.ndim:
            dtype = output.dtype
            if output.nbytes <= _RAW_BYTES * len(ids) and dtype.kind != "O":
                told = dtype.str, output.shape, output.tobytes()
            else:
                told = (_predictions(arm, ids, outputs, n_rows),)
        said: Any = (last[1], ids, status, run_ms, total_ms, at, n_rows, told)
        self._append(marshal.dumps(said), len(ids))

    def _append(self, payload: bytes, count: int) -> None:
        head = _RECORD.pack(len(payload), zlib.crc32(payload), self._next, count)
        size = len(head) + len(payload)
        used = self._used
        if used + size > _PART_BYTES:
            if size > _PART_BYTES:
                self._next += count  # Whoever reads is told that they are missing.
                return
            self._part ^= 1
            used = 0
            self._words[1 + self._part] = 0
        start = _WORDS_BYTES + _ARMS_BYTES + self._part * _PART_BYTES + used
        self._memory[start : start + size] = head + payload
        self._used = used + size
        self._words[1 + self._part] = self._used
        self._next += count

    def _introduced(self, arm: Arm) -> tuple[int, str]:
        """Return the number of an arm, and the name of the output that holds its predictions."""
        key = (arm.name, arm.version, arm.bundle.digest)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            self._introduce(arm)
        return number, arm.bundle.manifest.prediction_output

    def _introduce(self, arm: Arm) -> None:
        manifest = arm.bundle.manifest.model_dump_json()
        line = json.dumps([arm.name, arm.version, manifest]).encode() + b"\n"
        used = self._words[0]
        if used + len(line) > _ARMS_BYTES:
            line = b"\n"  # What it predicted is not known, but that it answered.
        start = _WORDS_BYTES + used
        self._memory[start : start + len(line)] = line
        self._words[0] = used + len(line)

    def _arms(self) -> list[_Known | None]:
        used = self._words[0]
        if self._known[0] == used:
            return self._known[1]
        lines = self._memory[_WORDS_BYTES : _WORDS_BYTES + used].split(b"\n")[:-1]
        found: list[_Known | None] = []
        for line in lines:
            name, version, manifest = json.loads(line) if line else ("", "", None)
            known = manifest and BundleManifest.model_validate_json(manifest)
            found.append(_Known(name, version, known) if known else None)
        self._known = (used, found)
        return found

    def _records(self, after: int) -> Iterator[_Record]:
        """Yield the records that hold outcomes behind a number, the oldest first."""
        parts = []
        for part in (0, 1):
            record = self._record(part, 0)
            if record is not None:
                parts.append((record.first, part))
        for first, part in sorted(parts):
            at = 0
            if self._mark[0] == first and self._mark[2] <= after + 1:
                at = self._mark[1]
            while (record := self._record(part, at)) is not None:
                if record.first + record.n_outcomes > after + 1:
                    yield record
                else:
                    self._mark = (first, record.end, record.first + record.n_outcomes)
                at = record.end

    def _record(self, part: int, at: int) -> _Record | None:
        """Return the record that begins somewhere; None where none ends whole."""
        used = min(self._words[1 + part], _PART_BYTES)
        if at + _RECORD.size > used:
            return None
        start = _WORDS_BYTES + _ARMS_BYTES + part * _PART_BYTES + at
        length, checksum, first, count = _RECORD.unpack_from(self._memory, start)
        end = at + _RECORD.size + length
        if end > used:
            return None
        payload = self._memory[start + _RECORD.size : start + _RECORD.size + length]
        if zlib.crc32(payload) != checksum:
            return None
        return _Record(first, count, payload, end)


def _documents(records: Sequence[_Record], arms: Sequence[_Known | None]) -> list[dict[str, Any]]:
    told = [(record.first, *marshal.loads(record.payload)) for record in records]  # noqa: S302
    fresh: list[Fresh] = []
    for _, number, ids, status, run_ms, total_ms, at, n_rows, output in told:
        arm = arms[number]
        if len(output) == 3 and arm is not None:
            array: NDArray[Any] = np.ndarray(output[1], np.dtype(output[0]), output[2])
            rows = [len(array)] if len(ids) == 1 else n_rows
            fresh.append(Fresh(ids, arm, status, run_ms, total_ms, at, array, rows))
    raw = iter(values_of(fresh))
    documents = []
    for first, number, ids, status, run_ms, total_ms, at, _, output in told:
        arm = arms[number]
        known = iter(output[0]) if len(output) == 1 else raw if output and arm is not None else None
        for place, request_id in enumerate(ids):
            value = None if known is None else _plain(next(known))
            documents.append(
                {
                    "seq": first + place,
                    "id": request_id,
                    "arm": "" if arm is None else arm.name,
                    "version": "" if arm is None else arm.version,
                    "status": status,
                    "run_ms": run_ms,
                    "total_ms": total_ms[place],
                    "prediction": value,
                    "at": at,
                }
            )
    return documents


def _predictions(
    arm: Arm,
    ids: Sequence[str],
    outputs: Mapping[str, NDArray[Any]] | None,
    n_rows: Sequence[int],
) -> list[object]:
    output = kept_output(arm, outputs)
    rows = [len(output)] if output is not None and len(ids) == 1 else n_rows
    fresh = Fresh(ids, arm, 200, 0.0, (), 0.0, output, rows)
    return [_plain(value) for value in values_of([fresh])]


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
