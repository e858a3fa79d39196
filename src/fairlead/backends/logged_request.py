"""Served requests on their way into the prediction log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from fairlead.core.bundle import BundleManifest
from fairlead.core.ports import Array, Feeds

__all__ = ["LoggedRequest", "Render", "RequestColumns", "render_joined", "render_requests"]


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


class RequestColumns(NamedTuple):
    """Requests to one bundle behind one service; one value per request in every sequence.

    Where the rows of all requests have one size, `feeds` and `outputs` may hold fewer and longer
    arrays, of the same rows in the same order.
    """

    service: str
    manifest: BundleManifest
    version: str
    bundle_digest: str
    id: Sequence[str]
    arm: Sequence[str]
    status: Sequence[int]
    feeds: Sequence[Feeds]
    outputs: Sequence[dict[str, Array] | None]
    n_rows: Sequence[int]
    queue_ms: Sequence[float]
    run_ms: Sequence[float]
    total_ms: Sequence[float]
    batch_rows: Sequence[int]
    at: Sequence[float]
    trace_id: Sequence[str]
    error: Sequence[str]

    def chosen(self, places: Sequence[int]) -> RequestColumns:
        """Return some of the requests, by place."""
        chosen: dict[str, Any] = {}
        for name in self._fields[_OF_ONE_BUNDLE:]:
            column = getattr(self, name)
            chosen[name] = [column[place] for place in places]
        return self._replace(**chosen)


_OF_ONE_BUNDLE = 4
Render = Callable[[Sequence[Any]], list[RequestColumns]]
"""Turns what a caller buffered into columns; the log calls it in its own thread."""


def render_requests(requests: Sequence[LoggedRequest]) -> list[RequestColumns]:
    """Group requests by service and bundle."""
    groups: dict[tuple[str, str], list[LoggedRequest]] = {}
    for request in requests:
        groups.setdefault((request.service, request.bundle_digest), []).append(request)
    found = []
    for group in groups.values():
        columns: dict[str, Any] = dict(
            zip(LoggedRequest._fields, zip(*group, strict=True), strict=True)
        )
        first = group[0]
        columns |= {
            "service": first.service,
            "manifest": first.manifest,
            "version": first.version,
            "bundle_digest": first.bundle_digest,
        }
        found.append(RequestColumns(**columns))
    return found


def render_joined(parts: Sequence[RequestColumns]) -> list[RequestColumns]:
    """Put columns below one another, by service and bundle; those of an arm stay together."""
    groups: dict[tuple[str, str], list[RequestColumns]] = {}
    for part in parts:
        groups.setdefault((part.service, part.bundle_digest), []).append(part)
    found = []
    for group in groups.values():
        columns: dict[str, Any] = {
            name: list(chain.from_iterable(getattr(part, name) for part in group))
            for name in RequestColumns._fields[_OF_ONE_BUNDLE:]
        }
        found.append(group[0]._replace(**columns))
    return found
