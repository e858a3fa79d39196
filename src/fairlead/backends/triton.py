"""Single-row requests sent with tritonclient, a client of the protocol that others wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairlead.core.errors import EndpointError
from fairlead.core.extras import requires
from fairlead.core.ports import Array, first_dimension

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
    outputs: dict[str, Array]
    latency_ms: float


def send_rows(
    url: str, model: str, feeds: Mapping[str, Array], *, id_prefix: str
) -> Iterator[RowAnswer]:
    """Send the rows of a batch one by one over HTTP with binary tensors.

    Args:
        url: Base URL of the server.
        model: Name of the model.
        feeds: Input tensors, first dimension the rows.
        id_prefix: The request of row i has the id `<prefix>-<i>`.

    Yields:
        One answer per row, in order.

    Raises:
        EndpointError: The server refused a request or could not be reached.
        MissingExtraError: tritonclient is not installed.
    """
    with requires("serve", needed_by="sending requests"):
        import tritonclient.http as triton
        from tritonclient.utils import InferenceServerException
    with closing(triton.InferenceServerClient(url.split("://", 1)[-1])) as client:
        for row in range(first_dimension(feeds)):
            request = f"{id_prefix}-{row}"
            inputs = [_input(triton, name, array[row : row + 1]) for name, array in feeds.items()]
            started = time.perf_counter()
            try:
                answer = client.infer(model, inputs, request_id=request)
            except (InferenceServerException, OSError) as exc:
                raise EndpointError(
                    f"request {request} to {url} failed: {exc}",
                    hint="look at the server's log in the workspace's services folder",
                ) from exc
            elapsed = (time.perf_counter() - started) * 1e3
            names = [item["name"] for item in answer.get_response()["outputs"]]
            yield RowAnswer(request, {name: answer.as_numpy(name) for name in names}, elapsed)


def _input(triton: Any, name: str, array: Array) -> Any:  # noqa: ANN401 (untyped library)
    from tritonclient.utils import np_to_triton_dtype

    ready = array.astype(object) if array.dtype.kind in "US" else np.ascontiguousarray(array)
    tensor = triton.InferInput(name, list(ready.shape), np_to_triton_dtype(ready.dtype))
    tensor.set_data_from_numpy(ready)
    return tensor
