"""Timed real requests to a server, divided with the help of its own metrics."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from fairlead.backends.access import OPEN, Access
from fairlead.backends.endpoint import EndpointClient
from fairlead.backends.openinference import dtype_name
from fairlead.core.errors import EndpointError
from fairlead.core.ports import Array, Feeds, first_dimension
from fairlead.core.signature import TensorSpec
from fairlead.measure.verdict import RequestTimes

__all__ = ["probe_url", "sample_feeds"]

_WARM_UP = 10
_LINE = re.compile(r"^(fairlead_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_PARTS = {
    "server": "fairlead_request_duration_seconds_sum",
    "queue": "fairlead_queue_duration_seconds_sum",
    "run": "fairlead_run_duration_seconds_sum",
    "count": "fairlead_request_duration_seconds_count",
}


def probe_url(
    url: str,
    service: str,
    feeds: Feeds | None = None,
    *,
    requests: int = 200,
    access: Access = OPEN,
) -> RequestTimes:
    """Send single rows one after the other, and time them at both ends.

    What happened within the server is the change of its metrics, so its parts are means over all
    requests that it answered meanwhile; only the client's times are those of single requests.

    Args:
        url: Base URL of the server.
        service: Name of the service.
        feeds: Rows to send, one array per input; one row of zeros when None.
        requests: Requests that are timed.
        access: Credentials, and the certificates to trust and to show.

    Raises:
        EndpointError: The server cannot be reached, refuses the rows, or has no such metrics.
    """
    with EndpointClient(url, service, access=access) as client:
        rows = feeds if feeds is not None else sample_feeds(client.metadata())
        n_rows = first_dimension(rows)
        client_ms = []
        before: dict[str, float] = {}
        for number in range(_WARM_UP + requests):
            row = number % n_rows
            one = {name: array[row : row + 1] for name, array in rows.items()}
            if number == _WARM_UP:
                before = _sums(client.metrics(), service)
            start = time.perf_counter()
            client.infer(one)
            if number >= _WARM_UP:
                client_ms.append((time.perf_counter() - start) * 1e3)
        after = _sums(client.metrics(), service)
    counted = after["count"] - before["count"]
    if counted <= 0:
        raise EndpointError(
            f"the metrics of {url} counted none of the {requests} requests",
            hint="run it again; the server must be one of `fairlead serve start`",
        )
    means = {name: (after[name] - before[name]) / counted * 1e3 for name in _PARTS}
    shape = np.ones(len(client_ms))
    return RequestTimes.from_arrays(
        run_ms=means["run"] * shape,
        server_ms=means["server"] * shape,
        queue_ms=means["queue"] * shape,
        client_ms=np.maximum(client_ms, means["server"]),
    )


def sample_feeds(metadata: dict[str, Any]) -> dict[str, Array]:
    """Make one row of zeros and empty texts that fits a model's metadata."""
    feeds: dict[str, Array] = {}
    for tensor in metadata.get("inputs", ()):
        shape = tuple(1 if size == -1 else int(size) for size in tensor["shape"])
        spec = TensorSpec(
            name=str(tensor["name"]), dtype=dtype_name(tensor["datatype"]), shape=shape
        )
        filler: Any = "" if spec.dtype == "string" else 0
        feeds[spec.name] = np.full(shape, filler, dtype=spec.numpy_dtype)
    return feeds


def _sums(text: str, service: str) -> dict[str, float]:
    """Add up the metrics of a service over its versions and arms."""
    sums = dict.fromkeys(_PARTS, 0.0)
    names = {metric: part for part, metric in _PARTS.items()}
    for metric, labels, value in _LINE.findall(text):
        if metric in names and f'model="{service}"' in labels:
            sums[names[metric]] += float(value)
    return sums
