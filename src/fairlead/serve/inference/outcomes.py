"""The last requests and what became of them, for rollouts that decide while the server runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.core.errors import FairleadError
from fairlead.measure.quality import predicted
from fairlead.serve.inference.served import ServedRequest

__all__ = ["OutcomeRing"]

_MAX_PREDICTIONS = 1024
_MAX_KEPT_BYTES = 1 << 16


class OutcomeRing:
    """A fixed number of outcomes; the oldest is forgotten first, and readers are told so."""

    def __init__(self, capacity: int = 100_000) -> None:
        """Remember up to `capacity` requests."""
        self._capacity = capacity
        self._slots: list[tuple[Any, ...]] = []
        self._last = 0

    def observe(self, requests: Sequence[ServedRequest]) -> None:
        """Remember requests, but for those that were only probes."""
        for served in requests:
            self._remember(served)

    def _remember(self, served: ServedRequest) -> None:
        if served.is_probe:
            return
        self._last += 1
        slot = (
            self._last,
            served.id,
            served.arm.name,
            served.arm.version,
            served.status,
            served.run_ms,
            served.total_ms,
            _kept(served),
            served.at,
        )
        if len(self._slots) < self._capacity:
            self._slots.append(slot)
        else:
            self._slots[(self._last - 1) % self._capacity] = slot

    def read(self, after: int, limit: int) -> dict[str, Any]:
        """Return up to `limit` outcomes whose number is greater than `after`, as JSON.

        `next` is the number to go on from, `missed` how many were forgotten in between.
        """
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
        slot = self._slots[(seq - 1) % self._capacity]
        _, request_id, arm, version, status, run_ms, total_ms, kept, at = slot
        values = None if kept is None else _predictions(*kept)
        return {
            "seq": seq,
            "id": request_id,
            "arm": arm,
            "version": version,
            "status": status,
            "run_ms": run_ms,
            "total_ms": total_ms,
            "prediction": values[0] if values is not None and len(values) == 1 else values,
            "at": at,
        }


def _kept(served: ServedRequest) -> tuple[BundleManifest, NDArray[Any]] | None:
    """Keep the output that holds the prediction; most outcomes are never read."""
    manifest = served.arm.bundle.manifest
    if served.outputs is None or manifest.prediction_output not in served.outputs:
        return None
    output = served.outputs[manifest.prediction_output]
    if output.ndim and output.nbytes > _MAX_KEPT_BYTES:
        output = output[:_MAX_PREDICTIONS].copy()
    return manifest, output


def _predictions(manifest: BundleManifest, output: NDArray[Any]) -> list[Any] | None:
    try:
        found = predicted(manifest, {manifest.prediction_output: output[:_MAX_PREDICTIONS]})
    except (FairleadError, ValueError, TypeError, IndexError):
        # A model of another kind has no single prediction per row.
        return None
    return list(found.tolist())
