"""Times requests at both ends of a running service."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fairlead.api.request_shares import latency_of, time_shares
from fairlead.api.service_place import Meters, Place
from fairlead.core.errors import EndpointError, OverloadedError
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Feeds, first_dimension
from fairlead.measure.verdict import RequestTimes, Surroundings

if TYPE_CHECKING:
    from fairlead.backends.endpoint import EndpointClient

__all__ = ["time_service"]

_REQUESTS: Final = 200
_FEWEST: Final = 20
_WARM_UP: Final = 5
_LIMIT_S: Final = 4.0
_PATIENCE_S: Final = 12.0
"""How long a service may refuse requests because it is full, before the others' are looked at."""
_PAGE: Final = 1000


def time_service(place: Place, feeds: Feeds | None) -> list[Evidence]:
    """Time requests at both ends of a service: client, network, queue and model.

    Args:
        place: The service.
        feeds: Rows to send one by one; None looks only at requests that others have sent.

    Raises:
        EndpointError: The service cannot be reached, or has answered nothing yet.
        DataError: It found the rows wrong.
    """
    with closing(_client(place)) as client:
        inside = _inside(place)
        before = Meters.read(client)
        after = 0 if inside is None or feeds is None else _newest(inside)
        seen = {} if feeds is None else _send(client, feeds)
        meters = Meters.read(client).since(None if feeds is None else before)
        known = {} if inside is None else _outcomes(inside, after)
        if inside is not None:
            inside.close()
    times = _paired(seen, known, meters) if seen else _watched(known, meters, place)
    method = "requests of one row, sent one after another" if seen else "requests of its clients"
    evidence = [] if times is None else time_shares(times, Surroundings(), place.subject, method)
    latency = np.array(list(seen.values())) if seen else times.server_ms if times else None
    if latency is not None:
        evidence.append(latency_of(latency, place.subject, method))
    return [*evidence, *meters.error_rate(place.subject)]


def _client(place: Place) -> EndpointClient:
    from fairlead.backends.endpoint import EndpointClient

    return EndpointClient(place.url, place.service, access=place.access)


def _inside(place: Place) -> EndpointClient | None:
    from fairlead.backends.endpoint import EndpointClient

    if place.endpoint is None:
        return None
    return EndpointClient(place.endpoint.url, place.endpoint.service, access=place.inside)


def _send(client: EndpointClient, feeds: Feeds) -> dict[str, float]:
    """Send single rows and return the time of each request, in ms.

    A service that is full refuses some or all of them: then the requests it answers tell.
    """
    n_rows = first_dimension(feeds)
    seen: dict[str, float] = {}
    begun = time.monotonic()
    deadline = begun + _LIMIT_S
    for number in range(_WARM_UP + _REQUESTS):
        row = number % n_rows
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        start = time.perf_counter()
        try:
            answer = client.infer(one)
        except OverloadedError:
            if time.monotonic() > begun + _PATIENCE_S:
                break
            continue
        took = (time.perf_counter() - start) * 1e3
        if number >= _WARM_UP:
            seen[answer.id or str(number)] = took
        if len(seen) >= _FEWEST and time.monotonic() > deadline:
            break
    return seen


def _pages(client: EndpointClient, after: int) -> Iterator[Any]:
    while True:
        page = client.outcomes(after, _PAGE)
        if not page.outcomes:
            return
        yield page
        after = page.next


def _newest(client: EndpointClient) -> int:
    return max((page.next for page in _pages(client, 0)), default=0)


def _outcomes(client: EndpointClient, after: int) -> dict[str, tuple[float, float]]:
    return {
        item.id: (item.run_ms, item.total_ms)
        for page in _pages(client, after)
        for item in page.outcomes
        if item.status == 200
    }


def _paired(
    seen: Mapping[str, float], known: Mapping[str, tuple[float, float]], meters: Meters
) -> RequestTimes | None:
    """Put the two ends of each request together; without an inside view, use its means.

    Only the quickest quarter of our own requests counts: what other programs on this machine add
    comes and goes, what the service adds is in every request.
    """
    both = sorted((name for name in seen if name in known), key=seen.__getitem__)
    if len(both) >= _FEWEST:
        both = both[: max(_FEWEST, len(both) // 4)]
        inside = [known[name] for name in both]
        return _times(inside, meters.queue_ms, [seen[name] for name in both])
    if meters.run_ms is None or meters.total_ms is None:
        return None
    inside = [(meters.run_ms, meters.total_ms)] * len(seen)
    return _times(inside, meters.queue_ms, list(seen.values()))


def _watched(
    known: Mapping[str, tuple[float, float]], meters: Meters, place: Place
) -> RequestTimes:
    """Take the requests of other clients."""
    inside = list(known.values())
    if not inside and meters.run_ms is not None and meters.total_ms is not None:
        inside = [(meters.run_ms, meters.total_ms)] * max(1, meters.n_requests)
    if not inside:
        raise EndpointError(
            f"`{place.service}` has answered no request yet, so there is nothing to time",
            hint="give rows to send with --data, or ask again when it is not overloaded",
        )
    return _times(inside, meters.queue_ms, None)


def _times(
    inside: list[tuple[float, float]], queue_ms: float | None, client_ms: list[float] | None
) -> RequestTimes:
    run, total = (np.array(column) for column in zip(*inside, strict=True))
    queue = np.full(len(run), queue_ms or 0.0)
    return RequestTimes.from_arrays(
        run_ms=run,
        server_ms=total,
        queue_ms=np.clip(queue, 0.0, np.maximum(total - run, 0.0)),
        client_ms=client_ms,
    )
