"""Times of real requests: asked of a running service, or read from the prediction log."""

from __future__ import annotations

import time

import numpy as np

from fairlead.backends.endpoint import EndpointClient, find_endpoint
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.core.errors import DataError, EndpointError
from fairlead.core.ports import Feeds, first_dimension
from fairlead.core.workspace import Workspace
from fairlead.measure.verdict import RequestTimes

__all__ = ["logged_times", "probe_service"]

_WARM_UP = 10
_PAGE = 1000
_FEWEST = 10


def probe_service(
    workspace: Workspace, service: str, feeds: Feeds, *, requests: int = 200
) -> RequestTimes:
    """Send single rows to a running service, one after the other, and time them at both ends.

    Args:
        workspace: Where the service is recorded.
        service: Its name.
        feeds: Rows to send, one array per input.
        requests: Requests that are timed.

    Raises:
        NotFoundError: No service of that name runs.
        EndpointError: It cannot be reached, or forgot the requests.
        DataError: It found the rows wrong.
    """
    endpoint, token = find_endpoint(workspace, service)
    client = EndpointClient.of(endpoint, token)
    n_rows = first_dimension(feeds)
    seen: dict[str, float] = {}
    try:
        for number in range(_WARM_UP + requests):
            row = number % n_rows
            one = {name: array[row : row + 1] for name, array in feeds.items()}
            if number == _WARM_UP:
                after = _last(client)
            start = time.perf_counter()
            answer = client.infer(one)
            if number >= _WARM_UP:
                seen[answer.id] = (time.perf_counter() - start) * 1e3
        inside = _outcomes(client, after)
    finally:
        client.close()
    both = [name for name in seen if name in inside]
    if not both:
        raise EndpointError(
            f"`{service}` remembers none of the {requests} requests it answered",
            hint="run it again while less traffic passes, or use --logged",
        )
    return RequestTimes.from_arrays(
        run_ms=[inside[name][0] for name in both],
        server_ms=[inside[name][1] for name in both],
        client_ms=[seen[name] for name in both],
    )


def _last(client: EndpointClient) -> int:
    """Return the number of the newest outcome, so that only later ones are read."""
    after = 0
    while True:
        page = client.outcomes(after, _PAGE)
        if not page.outcomes:
            return page.next
        after = page.next


def _outcomes(client: EndpointClient, after: int) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    while True:
        page = client.outcomes(after, _PAGE)
        if not page.outcomes:
            return found
        for item in page.outcomes:
            if item.status == 200:
                found[item.id] = (item.run_ms, item.total_ms)
        after = page.next


def logged_times(workspace: Workspace, service: str, *, limit: int = 10_000) -> RequestTimes:
    """Read the times of the newest requests that a service answered from the prediction log.

    Args:
        workspace: Where the log is.
        service: Name of the service.
        limit: Most predictions to read.

    Raises:
        DataError: The log holds too few of them.
        UsageError: The name cannot be that of a service.
    """
    batch = ParquetPredictionLog(workspace.predictions).read(service, limit=limit)
    is_good = np.zeros(0, dtype=bool) if batch is None else batch.fields["status"] == 200
    n_good = int(is_good.sum())
    if batch is None or n_good < _FEWEST:
        raise DataError(
            f"the prediction log holds {n_good} answered requests of `{service}`, "
            f"at least {_FEWEST} are needed",
            hint="send requests to the service first, or use --service to ask it directly",
        )
    fields = {name: values[is_good] for name, values in batch.fields.items()}
    return RequestTimes.from_arrays(
        run_ms=fields["run_ms"], server_ms=fields["total_ms"], queue_ms=fields["queue_ms"]
    )
