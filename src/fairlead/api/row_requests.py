"""Sends rows to a running server one by one, with a client that Fairlead did not write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import EndpointError
from fairlead.core.ports import Array, Progress, first_dimension

__all__ = ["RowAnswer", "send_rows"]


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """The answer to one request.

    Attributes:
        id: Id of the request.
        outputs: Name → array, first dimension 1.
        latency_ms: From sending to the last byte, as the client saw it.
    """

    id: str
    outputs: Mapping[str, Array]
    latency_ms: float


def send_rows(
    endpoint: Endpoint,
    admin_token: str,
    bundle: Bundle,
    feeds: Mapping[str, Array],
    *,
    id_prefix: str,
    progress: Progress,
) -> Iterator[RowAnswer]:
    """Send the rows of a batch one after another over HTTP with binary tensors.

    Args:
        endpoint: Where the server answers.
        admin_token: Opens it where it asks for credentials.
        bundle: What it serves; names the datatypes.
        feeds: Input tensors, first dimension the rows.
        id_prefix: The request of row i has the id `<prefix>-<i>`.
        progress: Hears of every answer.

    Yields:
        One answer per row, in order.

    Raises:
        EndpointError: A request was not answered with a result.
    """
    from fairlead.backends.access import Access
    from fairlead.backends.senders import client_name, sender_factory

    total = first_dimension(feeds)
    progress.begin(f"sending requests with {client_name(endpoint.url)}", total)
    access = Access.of_endpoint(endpoint, admin_token)
    connect = sender_factory(endpoint.url, endpoint.service, feeds, bundle.signature, access=access)
    with closing(connect()) as sender:
        for row in range(total):
            request = f"{id_prefix}-{row}"
            started = time.perf_counter()
            answer = sender.send(row, request)
            elapsed = (time.perf_counter() - started) * 1e3
            if not answer.is_served:
                raise EndpointError(
                    f"request {request} to {endpoint.url} failed ({answer.status}): {answer.error}",
                    hint="look at the server's log in the workspace's services folder",
                )
            yield RowAnswer(request, answer.outputs, elapsed)
            progress.advance()
