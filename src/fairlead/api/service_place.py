"""Where a service is, by URL or name, and what its server counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from fairlead.api.context import Context
from fairlead.api.doors import Door, find_door
from fairlead.backends.access import OPEN, Access
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import AccessError, DataError, EndpointError, NotFoundError, UsageError
from fairlead.core.evidence import Evidence

if TYPE_CHECKING:
    from fairlead.backends.endpoint import EndpointClient

__all__ = ["Meters", "Place", "find_place"]

_SKILL: Final = "production-debugging-techniques"
_FEWEST: Final = 20
_SAMPLE: Final = re.compile(r"^(fairlead_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """A service as the caller reaches it, and as the workspace knows it.

    Attributes:
        url: Where the caller's requests go, perhaps through a proxy.
        service: Name of the service.
        endpoint: The server behind it, when the workspace started it.
        access: What is shown at `url`, and trusted there.
        inside: Opens the endpoint's own address; its token is sent nowhere else.
    """

    url: str
    service: str
    endpoint: Endpoint | None = None
    access: Access = OPEN
    inside: Access = OPEN

    @property
    def subject(self) -> str:
        """What measurements of it are filed under."""
        return f"service:{self.service}"


def find_place(reference: str, context: Context) -> Place:
    """Find a service by its URL or its name.

    Raises:
        UsageError: The URL cannot be read.
        NotFoundError: No service of that name runs in the workspace.
        EndpointError: Nothing answers there, or it does not say what it serves.
    """
    base, _, rest = reference.partition("/v2/models/")
    door = find_door(base, context)
    if door.endpoint is not None:
        return Place(door.url, door.name, door.endpoint, door.access, door.access)
    service = unquote(rest.split("/")[0]) or _served_at(door)
    try:
        inside = find_door(service, context)
    except (NotFoundError, UsageError):  # It may be named as no service here can be.
        return Place(door.url, service, access=door.access)
    return Place(door.url, service, inside.endpoint, door.access, inside.access)


def _served_at(door: Door) -> str:
    with closing(door.client(timeout_s=10.0)) as client:
        try:
            text = client.metrics()
        except (NotFoundError, DataError, AccessError):
            text = ""
    found = re.search(r'^fairlead_\w+\{[^}]*model="([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise EndpointError(
            f"{door.url} does not say which model it serves",
            hint=f"name it: {door.url}/v2/models/NAME",
        )
    return found[1]


@dataclass(frozen=True, slots=True)
class Meters:
    """Sums that a server keeps: family → value, in seconds or requests."""

    sums: Mapping[str, float]

    @classmethod
    def read(cls, client: EndpointClient) -> Meters:
        """Read what a server counts: its metrics, or the statistics of the protocol.

        A server that has neither has no sums.
        """
        try:
            return cls(_sums_of_metrics(client.metrics()) or _sums_of_statistics(client))
        except (NotFoundError, DataError, AccessError):
            return cls(_sums_of_statistics(client))

    def since(self, before: Meters | None) -> Meters:
        """Return what was added since an earlier reading."""
        if before is None:
            return self
        return Meters({key: value - before.sums.get(key, 0.0) for key, value in self.sums.items()})

    def _mean_ms(self, what: str) -> float | None:
        count = self.sums.get(f"fairlead_{what}_duration_seconds_count", 0.0)
        total = self.sums.get(f"fairlead_{what}_duration_seconds_sum", 0.0)
        return total / count * 1e3 if count >= 1 else None

    @property
    def run_ms(self) -> float | None:
        """Mean time the model ran."""
        return self._mean_ms("run")

    @property
    def queue_ms(self) -> float | None:
        """Mean time in the queue."""
        return self._mean_ms("queue")

    @property
    def total_ms(self) -> float | None:
        """Mean time within the server."""
        return self._mean_ms("request")

    @property
    def n_requests(self) -> int:
        """Requests that were answered or failed."""
        return int(sum(v for k, v in self.sums.items() if k.startswith("fairlead_requests_total")))

    def error_rate(self, subject: str) -> list[Evidence]:
        """Return the share of requests that failed by the server's fault."""
        if self.n_requests < _FEWEST:
            return []
        failed = self.sums.get("fairlead_requests_total:5", 0.0)
        return [
            Evidence(
                metric="error_rate_ratio",
                value=failed / self.n_requests,
                unit="ratio",
                method="requests answered with a status of 500 or more, over all",
                subject=subject,
                sample_size=self.n_requests,
                skill=_SKILL,
            )
        ]


def _sums_of_metrics(text: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        status = re.search(r'status="(\d)', labels)
        key = f"{name}:{status[1]}" if status else name
        sums[key] = sums.get(key, 0.0) + float(value)
    return sums


_STATISTICS: Final = {"success": "request", "queue": "queue", "compute_infer": "run"}


def _sums_of_statistics(client: EndpointClient) -> dict[str, float]:
    """Read the statistics extension of the Open Inference Protocol: counts and nanoseconds."""
    try:
        models = client.statistics()["model_stats"]
        found = models[0]["inference_stats"]
        sums: dict[str, float] = {}
        for theirs, ours in _STATISTICS.items():
            sums[f"fairlead_{ours}_duration_seconds_count"] = float(found[theirs]["count"])
            sums[f"fairlead_{ours}_duration_seconds_sum"] = found[theirs]["ns"] / 1e9
    except (EndpointError, NotFoundError, DataError, LookupError, TypeError):
        return {}
    return sums
