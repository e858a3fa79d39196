"""What the workspace has measured already, in the words that the router reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Final

from fairlead.api.context import Context
from fairlead.api.source_rows import Sources, bundle_of, labelled, load_rows
from fairlead.core.evidence import Evidence

__all__ = ["for_router", "known_evidence"]

_SLOWER: Final = 1.5
"""A service is slow when it takes half as long again as it used to."""
_HISTORY: Final = 3
"""Measurements that make a history."""
_ONE_LOOK: Final = timedelta(seconds=5)
"""Measurements of one comparison are stored within this time."""
_FRESH: Final = timedelta(minutes=15)
"""How long a measurement spares a new one, where a new one may be taken."""


def known_evidence(
    sources: Sources, context: Context, *, only_fresh: bool = False
) -> list[Evidence]:
    """Return the measurements that the workspace holds about these sources.

    Without a source, those of the whole workspace, as long as they are about one thing only:
    measurements of several models say nothing about the one that the user has in mind. With rows,
    what was found out about other rows is left out.

    Args:
        sources: What it is about.
        context: Holds the measurements.
        only_fresh: Leave out what is older than 15 minutes, latencies excepted: they are history.

    Raises:
        NotFoundError: There is no such model, file or service.
        WorkspaceError: The measurements cannot be read.
    """
    subjects = _subjects(sources, context)
    if not _has_memory(context):
        return []
    if subjects:
        found = [item for name in subjects for item in context.evidence.query(subject=name)]
    else:
        found = [item for item in context.evidence.query() if for_router([item])]
        if len({item.subject for item in found}) != 1:
            return []
    if only_fresh:
        since = datetime.now(UTC) - _FRESH
        found = [i for i in found if i.measured_at >= since or i.metric == "latency_p95_ms"]
    return _about_rows(found, sources)


def _subjects(sources: Sources, context: Context) -> tuple[str, ...]:
    """Return what measurements of these sources are filed under."""
    found: list[str] = []
    if sources.model is not None:
        from fairlead.core.artifact import Artifact

        bundle = bundle_of(sources)
        own = None if bundle is None else bundle.digest
        found.append(own or Artifact.from_reference(sources.model).digest)
    if sources.url is not None:
        from fairlead.api.service_place import find_place

        place = find_place(sources.url, context)
        found.append(place.subject)
        found += place.endpoint.arms.values() if place.endpoint is not None else ()
    return tuple(dict.fromkeys(found))


def _about_rows(evidence: list[Evidence], sources: Sources) -> list[Evidence]:
    """Leave out drift and losses of quality that were found on other rows than these."""
    if sources.data is None or not any(_is_about_rows(item) for item in evidence):
        return evidence
    rows, bundle = load_rows(sources), bundle_of(sources)
    digests = {rows.digest, rows.digest if bundle is None else labelled(rows, bundle).digest}
    return [i for i in evidence if not _is_about_rows(i) or i.labels.get("data") in digests]


def _is_about_rows(item: Evidence) -> bool:
    return item.metric in _DRIFT or item.metric.endswith("_drop_ratio")


def _has_memory(context: Context) -> bool:
    """Whether anything was ever stored; spares a cold start the database."""
    url = context.workspace.database_url
    return not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).is_file()


def for_router(evidence: Iterable[Evidence], *, slo_ms: float | None = None) -> list[Evidence]:
    """Return measurements under the names that the router reads.

    A loss that may be chance is left out: its interval reaches down to nothing.

    Args:
        evidence: Measurements as skills store them.
        slo_ms: Longest time that a request may take, in ms; taken from the history of latencies
            when None.
    """
    found = _one_drift([item for given in evidence if (item := _renamed(given)) is not None])
    latencies = [item for item in found if item.metric == "latency_p95_ms"]
    limit = _limit(latencies, slo_ms)
    return [*found, limit] if limit is not None else found


_READ: Final = frozenset({
    "threads_per_cpu", "model_time_share", "queue_time_share", "network_time_share",
    "padding_share", "latency_p95_ms", "latency_slo_ms",
    "accuracy_drop_ratio", "drift_detected", "prediction_drift_detected", "training_time_share",
    "alerts_firing", "error_rate_ratio",
})  # fmt: skip
_DRIFT: Final = {
    "drifted_columns": "drift_detected",
    "changed_relations": "drift_detected",
    "prediction_drift": "prediction_drift_detected",
}


def _one_drift(evidence: list[Evidence]) -> list[Evidence]:
    """Keep one verdict of the newest look at the data: columns or their relations may drift."""
    looks = [item for item in evidence if item.metric == "drift_detected"]
    if len(looks) < 2:
        return evidence
    newest = max(item.measured_at for item in looks)
    same = [item for item in looks if newest - item.measured_at < _ONE_LOOK]
    verdict = max(same, key=lambda item: item.value)
    return [item for item in evidence if item.metric != "drift_detected" or item is verdict]


def _renamed(item: Evidence) -> Evidence | None:
    if item.metric in _DRIFT:
        is_found = 1.0 if item.value > 0 else 0.0
        change = {"metric": _DRIFT[item.metric], "value": is_found, "unit": "count"}
        return item.model_copy(update=change)
    if item.metric.endswith("_drop_ratio"):
        if item.ci_low is not None and item.ci_low <= 0:
            return None
        return item.model_copy(update={"metric": "accuracy_drop_ratio"})
    return item if item.metric in _READ else None


def _limit(latencies: Sequence[Evidence], slo_ms: float | None) -> Evidence | None:
    if not latencies:
        return None
    newest = max(latencies, key=lambda item: item.measured_at)
    if slo_ms is not None:
        return newest.model_copy(
            update={"metric": "latency_slo_ms", "value": slo_ms, "method": "given"}
        )
    host = newest.environment.get("host")
    alike = [
        item.value
        for item in latencies
        if item.method == newest.method
        and item.subject == newest.subject
        and item.environment.get("host") == host
        and item.id != newest.id
    ]
    if len(alike) < _HISTORY:
        return None
    usual = {"value": _SLOWER * median(alike), "method": "half as long again as it usually took"}
    return newest.model_copy(update={"metric": "latency_slo_ms", **usual})
