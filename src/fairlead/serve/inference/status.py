"""What a service says of its workers and models, for people who look after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fairlead.backends.memory import resident_bytes

if TYPE_CHECKING:
    from fairlead.serve.inference.service import Service

__all__ = ["merged_status", "worker_status"]

_STARTED = time.time()


def worker_status(service: Service) -> dict[str, Any]:
    """Return what one worker knows of itself and of its models."""
    worker = {
        "worker": service.number,
        "pid": os.getpid(),
        "is_ready": service.is_ready,
        "connections": service.n_connections(),
        "requests": service.uses.n_requests,
        "cpu_s": round(time.process_time(), 3),
        "uptime_s": round(time.time() - _STARTED, 3),
        "resident_bytes": resident_bytes(),
        "restarts": 0,
    }
    return {"workers": [worker], "models": [_model(service, item) for item in _entries(service)]}


def _entries(service: Service) -> Iterable[tuple[str, Any, bool]]:
    repository = service.repository
    for name in repository.names():
        for version, is_default in repository.describe(name):
            yield name, version, is_default


def _model(service: Service, entry: tuple[str, Any, bool]) -> dict[str, Any]:
    name, version, is_default = entry
    n_requests, last_used = service.uses.of(name, dict.fromkeys((version.id, *version.ids)))
    return {
        "name": name,
        "version": version.id,
        "is_default": is_default,
        "state": version.state,
        "reason": version.reason,
        "bundle": str(version.path),
        "digest": version.bundle.digest,
        "size_bytes": version.bundle.size_bytes,
        "memory_bytes": version.cost_bytes if version.plane is not None else 0,
        "requests": n_requests,
        "last_used": last_used,
        "workers": int(version.plane is not None),
    }


def merged_status(
    answers: Mapping[int, Mapping[str, Any]], places: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Put together what several workers said.

    Args:
        answers: Place → `worker_status` of the worker that has it.
        places: `worker`, `pid` and `restarts` of every place, also of those that said nothing.
    """
    workers = []
    for place in places:
        said = answers.get(place["worker"])
        unknown = {"is_ready": False, "connections": None, "requests": None, "cpu_s": None}
        unknown |= {"uptime_s": None, "resident_bytes": None}
        own = unknown if said is None else dict(said["workers"][0])
        workers.append({**own, **place})
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for _, said in sorted(answers.items()):
        for found in said["models"]:
            key = (found["name"], found["version"])
            models[key] = found if key not in models else _added(models[key], found)
    return {"workers": workers, "models": list(models.values())}


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Add what another worker says of the same version; the better state counts."""
    best = one if one["state"] == "READY" or other["state"] != "READY" else other
    uses = [item["last_used"] for item in (one, other) if item["last_used"] is not None]
    sums = {key: one[key] + other[key] for key in ("memory_bytes", "requests", "workers")}
    return {**best, **sums, "last_used": max(uses, default=None)}
