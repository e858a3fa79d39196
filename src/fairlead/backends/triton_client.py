"""Inference with Triton's own client: a second opinion that is not ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.openinference import datatype_of
from fairlead.core.errors import EndpointError
from fairlead.core.ports import Feeds

__all__ = ["infer_with_triton"]


def infer_with_triton(
    url: str,
    model: str,
    feeds: Feeds,
    *,
    version: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> dict[str, NDArray[Any]]:
    """Send one request of binary tensors and return the outputs.

    Raises:
        ModuleNotFoundError: `tritonclient` is not installed.
        EndpointError: The server refused or could not be reached.
    """
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(
        urlsplit(url).netloc, connection_timeout=timeout_s, network_timeout=timeout_s
    )
    inputs = []
    for name, array in feeds.items():
        is_text = array.dtype.kind in "OUS"
        datatype = "BYTES" if is_text else datatype_of(array.dtype.name)
        item = triton.InferInput(name, list(array.shape), datatype)
        raw = np.array([str(v).encode() for v in array.ravel()], object) if is_text else array
        item.set_data_from_numpy(raw.reshape(array.shape))
        inputs.append(item)
    try:
        answer = client.infer(model, inputs, model_version=version, headers=dict(headers or {}))
        names = [output["name"] for output in answer.get_response()["outputs"]]
        return {name: _plain(answer.as_numpy(name)) for name in names}
    except (InferenceServerException, OSError) as exc:
        raise EndpointError(
            f"tritonclient could not get an answer from {url}: {exc}",
            hint="look at the server's log with `fairlead serve status`",
        ) from exc
    finally:
        client.close()


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "O":
        return array
    texts: NDArray[np.object_] = np.empty(array.size, dtype=object)
    texts[:] = [v.decode() if isinstance(v, bytes) else str(v) for v in array.ravel()]
    return texts.reshape(array.shape)
