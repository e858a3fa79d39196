"""What a request costs around the model, measured in this process without a server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

import numpy as np

from fairlead.core.dataset import Array
from fairlead.core.ports import Feeds, Runner
from fairlead.measure.verdict import RequestTimes

__all__ = ["time_requests"]


def time_requests(
    runner: Runner,
    feeds: Feeds,
    *,
    requests: int = 200,
    warm_up: int = 5,
    time_limit_s: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> RequestTimes:
    """Time the way of a request through a server that does nothing else.

    Each request is a JSON document in the form of the Open Inference Protocol. It is read, its
    tensors are built, the model runs, and the answer is written, with the JSON reader and writer
    of Python's standard library.

    Args:
        runner: The model.
        feeds: The rows of one request, one array per input.
        requests: Requests to time, at least 1.
        warm_up: Requests before them that are not counted.
        time_limit_s: Stop early after this long, but never before 10 requests.
        clock: Wall clock in seconds.

    Returns:
        Times within the server; there is no queue and no client.
    """
    body = json.dumps(
        {
            "inputs": [
                {"name": name, "shape": list(array.shape), "data": array.ravel().tolist()}
                for name, array in feeds.items()
            ]
        }
    ).encode()
    dtypes = {name: array.dtype for name, array in feeds.items()}
    for _ in range(warm_up):
        _answer(runner, body, dtypes, clock)
    times: list[tuple[float, float]] = []
    deadline = clock() + time_limit_s
    while len(times) < requests and (len(times) < min(10, requests) or clock() < deadline):
        times.append(_answer(runner, body, dtypes, clock))
    table = np.array(times) * 1e3
    return RequestTimes.from_arrays(run_ms=table[:, 0], server_ms=table[:, 1])


def _answer(
    runner: Runner,
    body: bytes,
    dtypes: Mapping[str, np.dtype[np.generic]],
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Answer one request; return the seconds of the run and of all of it."""
    start = clock()
    feeds: dict[str, Array] = {
        item["name"]: np.array(item["data"], dtypes[item["name"]]).reshape(item["shape"])
        for item in json.loads(body)["inputs"]
    }
    before = clock()
    outputs = runner.run(feeds)
    after = clock()
    json.dumps(
        {
            "outputs": [
                {"name": name, "shape": list(array.shape), "data": array.ravel().tolist()}
                for name, array in outputs.items()
            ]
        }
    ).encode()
    return after - before, clock() - start
