"""What the workspace has measured already, in the words that the router reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from fairlead.api.context import Context
from fairlead.core.artifact import Artifact
from fairlead.core.bundle import Bundle
from fairlead.core.evidence import Evidence

__all__ = ["Sources", "for_router", "known_evidence", "subjects_of"]

_SLOWER: Final = 1.5
"""A service is slow when it takes half as long again as it used to."""
_HISTORY: Final = 3
"""Measurements that make a history."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What measurements may be read from, or taken on.

    Attributes:
        model: Reference of a model or bundle.
        data: Reference of rows.
        labels: Column of the labels.
        url: URL or name of a running service.
        slo_ms: Longest time that a request may take, in ms.
        trust: Whether code that came with the model may run.
    """

    model: str | None = None
    data: str | None = None
    labels: str | None = None
    url: str | None = None
    slo_ms: float | None = None
    trust: bool = False


def subjects_of(sources: Sources, context: Context) -> tuple[str, ...]:
    """Return what measurements of these sources are filed under.

    Raises:
        NotFoundError: There is no such model or service.
        EndpointError: The service cannot be reached.
    """
    found: list[str] = []
    if sources.model is not None:
        artifact = Artifact.from_reference(sources.model)
        found.append(artifact.digest)
        if artifact.format == "bundle" and artifact.path is not None:
            found.append(Bundle.open(artifact.path).digest)
    if sources.url is not None:
        from fairlead.api.service_place import find_place

        place = find_place(sources.url, context)
        found.append(place.subject)
        found += place.endpoint.arms.values() if place.endpoint is not None else ()
    return tuple(found)


def known_evidence(sources: Sources, context: Context) -> list[Evidence]:
    """Return the measurements that the workspace holds about these sources.

    Without a source, those of the whole workspace, as long as they are about one thing only:
    measurements of several models say nothing about the one that the user has in mind.

    Raises:
        NotFoundError: There is no such model or service.
        WorkspaceError: The measurements cannot be read.
    """
    subjects = subjects_of(sources, context)
    if not _has_memory(context):
        return []
    if subjects:
        return [item for name in subjects for item in context.evidence.query(subject=name)]
    everything = [item for item in context.evidence.query() if for_router([item])]
    return everything if len({item.subject for item in everything}) == 1 else []


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
    found = [item for given in evidence if (item := _renamed(given)) is not None]
    latencies = [item for item in found if item.metric == "latency_p95_ms"]
    limit = _limit(latencies, slo_ms)
    return [*found, limit] if limit is not None else found


_READ: Final = frozenset({
    "model_time_share", "queue_time_share", "latency_p95_ms", "latency_slo_ms",
    "accuracy_drop_ratio", "drift_detected", "prediction_drift_detected", "training_time_share",
    "alerts_firing", "error_rate_ratio",
})  # fmt: skip
_DRIFT: Final = {
    "drifted_columns": "drift_detected",
    "changed_relations": "drift_detected",
    "prediction_drift": "prediction_drift_detected",
}


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
