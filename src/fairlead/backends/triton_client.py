"""NVIDIA's own client: a second opinion that is not ours."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.load import Answer
from fairlead.backends.openinference import datatype_of
from fairlead.core.errors import EndpointError
from fairlead.core.ports import Feeds
from fairlead.core.signature import Signature

__all__ = ["TritonCaller", "infer_with_triton"]


class TritonCaller:
    """One connection of `tritonclient`, which knows nothing of Fairlead."""

    def __init__(
        self,
        url: str,
        model: str,
        signature: Signature | None = None,
        *,
        timeout_s: float = 30.0,
    ) -> None:
        """Open nothing yet.

        Args:
            url: Base URL of the server.
            model: Name of the model.
            signature: Datatypes of the inputs; None takes those of the arrays.
            timeout_s: Longest wait for one answer, in seconds.

        Raises:
            ModuleNotFoundError: `tritonclient` is not installed.
        """
        import tritonclient.http as triton

        parts = urlsplit(url)
        self._triton = triton
        self._model = model
        specs = signature.inputs if signature is not None else ()
        self._datatypes = {spec.name: datatype_of(spec.dtype) for spec in specs}
        self._client = triton.InferenceServerClient(
            parts.netloc,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            ssl=parts.scheme == "https",
        )

    def infer(
        self,
        feeds: Feeds,
        *,
        id: str = "",  # noqa: A002
        version: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request of binary tensors."""
        inputs = [self._input(name, array) for name, array in feeds.items()]
        try:
            result = self._client.infer(
                self._model, inputs, request_id=id, model_version=version,
                headers=dict(headers or {}),
            )  # fmt: skip
            names = [item["name"] for item in result.get_response()["outputs"]]
            return Answer(200, {name: _plain(result.as_numpy(name)) for name in names})
        except self._triton.InferenceServerException as exc:
            return Answer(_status(exc.status()), {}, exc.message() or str(exc))
        except (OSError, HTTPException, ValueError, IndexError) as exc:
            return Answer(0, {}, str(exc) or type(exc).__name__)

    def _input(self, name: str, array: NDArray[Any]) -> Any:  # noqa: ANN401 (tritonclient's)
        is_text = array.dtype.kind in "OUS"
        datatype = self._datatypes.get(name) or (
            "BYTES" if is_text else datatype_of(array.dtype.name)
        )
        item = self._triton.InferInput(name, list(array.shape), datatype)
        if is_text:
            raw = np.array([str(value).encode() for value in array.ravel()], object)
            item.set_data_from_numpy(raw.reshape(array.shape))
        else:
            item.set_data_from_numpy(array)
        return item

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


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
    caller = TritonCaller(url, model, timeout_s=timeout_s)
    try:
        answer = caller.infer(feeds, version=version, headers=headers)
    finally:
        caller.close()
    if answer.status != 200:
        raise EndpointError(
            f"tritonclient could not get an answer from {url}: {answer.error}",
            hint="look at the server's log with `fairlead serve status`",
        )
    return answer.outputs


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "O":
        return array
    texts: NDArray[np.object_] = np.empty(array.size, dtype=object)
    texts[:] = [v.decode() if isinstance(v, bytes) else str(v) for v in array.ravel()]
    return texts.reshape(array.shape)


def _status(text: str | None) -> int:
    digits = "".join(letter for letter in str(text or "") if letter.isdigit())
    return int(digits) if digits else 0
