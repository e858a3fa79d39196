"""One served request on its way into the prediction log."""

from __future__ import annotations

from typing import NamedTuple

from fairlead.core.bundle import BundleManifest
from fairlead.core.ports import Array, Feeds

__all__ = ["LoggedRequest"]


class LoggedRequest(NamedTuple):
    """One request of one or more rows, as arrays; the fields are those of `Prediction`."""

    id: str
    service: str
    manifest: BundleManifest
    version: str
    bundle_digest: str
    arm: str
    status: int
    feeds: Feeds
    outputs: dict[str, Array] | None
    n_rows: int
    queue_ms: float
    run_ms: float
    total_ms: float
    batch_rows: int
    at: float
    """Seconds since the epoch."""
    trace_id: str = ""
    error: str = ""
