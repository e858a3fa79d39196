"""Connections that send rows to a server: NVIDIA's client, our own, and a raw one for load."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.endpoint import EndpointClient
from fairlead.backends.load import Answer, Sender
from fairlead.backends.openinference import bytes_from_tensor, datatype_of, dtype_name
from fairlead.core.errors import DataError, EndpointError, FairleadError, NotFoundError
from fairlead.core.ports import Feeds
from fairlead.core.signature import Signature, TensorSpec

__all__ = [
    "EndpointSender",
    "ModelDescription",
    "RawSender",
    "TritonSender",
    "client_name",
    "prepare_requests",
    "read_model",
    "sender_factory",
]

_TEXT = "O"
_RAW_ERRORS = (OSError, HTTPException, ValueError, IndexError)


def client_name() -> str:
    """Return the client that `sender_factory` uses: `tritonclient` where it is installed."""
    try:
        import tritonclient.http  # noqa: F401
    except ImportError:
        return "fairlead"
    return "tritonclient"


def sender_factory(
    url: str, service: str, feeds: Feeds, signature: Signature, *, timeout_s: float = 30.0
) -> Callable[[], Sender]:
    """Return what opens a connection that sends rows of `feeds`, one per request.

    Args:
        url: Base URL of the server.
        service: Name of the model.
        feeds: One array per input, first dimension the rows.
        signature: Datatypes of the inputs.
        timeout_s: Longest wait for one answer, in seconds.
    """
    if client_name() == "tritonclient":
        return lambda: TritonSender(url, service, feeds, signature, timeout_s=timeout_s)
    return lambda: EndpointSender(url, service, feeds, timeout_s=timeout_s)


class TritonSender:
    """Sends through NVIDIA's `tritonclient`, which knows nothing of Fairlead."""

    def __init__(
        self, url: str, service: str, feeds: Feeds, signature: Signature, *, timeout_s: float
    ) -> None:
        """Open nothing yet; see `sender_factory`."""
        import tritonclient.http as triton

        parts = urlsplit(url)
        self._triton = triton
        self._service = service
        self._feeds = feeds
        self._datatypes = {spec.name: datatype_of(spec.dtype) for spec in signature.inputs}
        self._client = triton.InferenceServerClient(
            parts.netloc,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            ssl=parts.scheme == "https",
        )

    def send(self, row: int, request_id: str) -> Answer:
        """Send one row."""
        try:
            result = self._client.infer(self._service, self._inputs(row), request_id=request_id)
            names = [item["name"] for item in result.get_response()["outputs"]]
            return Answer(200, {name: _text(result.as_numpy(name)) for name in names})
        except self._triton.InferenceServerException as exc:
            return Answer(_status(exc.status()), {}, exc.message() or str(exc))
        except _RAW_ERRORS as exc:
            return Answer(0, {}, str(exc) or type(exc).__name__)

    def _inputs(self, row: int) -> list[Any]:
        inputs = []
        for name, array in self._feeds.items():
            one = array[row : row + 1]
            item = self._triton.InferInput(name, list(one.shape), self._datatypes[name])
            item.set_data_from_numpy(one)
            inputs.append(item)
        return inputs

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _text(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != _TEXT:
        return array
    values = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    return np.array(values, dtype=object).reshape(array.shape)


def _status(text: str | None) -> int:
    digits = "".join(letter for letter in str(text or "") if letter.isdigit())
    return int(digits) if digits else 0


class EndpointSender:
    """Sends through our own client, which needs no further library."""

    def __init__(self, url: str, service: str, feeds: Feeds, *, timeout_s: float) -> None:
        """Open nothing yet; see `sender_factory`."""
        self._client = EndpointClient(url, service, timeout_s=timeout_s)
        self._feeds = feeds

    def send(self, row: int, request_id: str) -> Answer:
        """Send one row."""
        one = {name: array[row : row + 1] for name, array in self._feeds.items()}
        try:
            return Answer(200, self._client.infer(one, id=request_id).outputs)
        except (DataError, NotFoundError) as exc:
            return Answer(400, {}, exc.message)
        except EndpointError as exc:
            is_unreachable = exc.__cause__ is not None
            return Answer(0 if is_unreachable else 500, {}, exc.message)
        except FairleadError as exc:
            return Answer(500, {}, exc.message)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class RawSender:
    """Sends prepared bytes over one socket and reads only the status.

    The client's own cost stays small, so that the server is measured and not the client.
    """

    def __init__(self, url: str, bodies: list[bytes], *, timeout_s: float) -> None:
        """Open nothing yet.

        Args:
            url: Base URL of the server.
            bodies: One whole HTTP request per row; see `prepare_requests`.
            timeout_s: Longest wait for one answer, in seconds.
        """
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._bodies = bodies
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def send(self, row: int, request_id: str) -> Answer:
        """Send one row; the id is not sent."""
        del request_id
        is_reused = self._socket is not None
        try:
            return self._exchange(self._bodies[row])
        except (ConnectionError, ValueError) as exc:
            self.close()
            if not is_reused:
                return Answer(0, {}, str(exc) or type(exc).__name__)
        except OSError as exc:
            self.close()
            return Answer(0, {}, str(exc) or type(exc).__name__)
        return self.send(row, "")

    def _exchange(self, body: bytes) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(body)
        head, rest = self._read_until(b"\r\n\r\n", b"")
        status = int(head.split(b" ", 2)[1])
        lowered = head.lower()
        if b"content-length:" in lowered:
            length = int(lowered.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            while len(rest) < length:
                rest += self._receive()
        elif b"transfer-encoding: chunked" in lowered:
            self._read_until(b"0\r\n\r\n", rest)
        if b"connection: close" in lowered:
            self.close()
        return Answer(status, {}, "" if status < 400 else rest[:200].decode(errors="replace"))

    def _read_until(self, mark: bytes, data: bytes) -> tuple[bytes, bytes]:
        while mark not in data:
            data += self._receive()
        head, rest = data.split(mark, 1)
        return head, rest

    def _receive(self) -> bytes:
        if self._socket is None:
            raise ConnectionResetError("the connection is closed")
        piece = self._socket.recv(65536)
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        return piece

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None


def prepare_requests(
    url: str, service: str, feeds: Feeds, signature: Signature, *, is_binary: bool
) -> list[bytes]:
    """Write one whole HTTP request per row.

    Args:
        url: Base URL of the server.
        service: Name of the model.
        feeds: One array per input, first dimension the rows.
        signature: Datatypes of the inputs.
        is_binary: Whether the server takes tensors as bytes; else they go as JSON.
    """
    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/v2/models/{quote(service)}/infer"
    count = len(next(iter(feeds.values())))
    requests = []
    for row in range(count):
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        head, tail = _infer_body(one, signature, is_binary=is_binary)
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: keep-alive"]
        # Load is no user: our own server answers it, but keeps it out of the prediction log.
        lines += ["fairlead-probe: 1"]
        if is_binary:
            lines += [f"Inference-Header-Content-Length: {len(head)}"]
        kind = "application/octet-stream" if is_binary else "application/json"
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(head) + len(tail)}", "", ""]
        requests.append("\r\n".join(lines).encode() + head + tail)
    return requests


def _infer_body(feeds: Feeds, signature: Signature, *, is_binary: bool) -> tuple[bytes, bytes]:
    inputs: list[dict[str, Any]] = []
    tail = b""
    for spec in signature.inputs:
        array = feeds[spec.name]
        item: dict[str, Any] = {
            "name": spec.name,
            "shape": list(array.shape),
            "datatype": datatype_of(spec.dtype),
        }
        if is_binary:
            _, raw = bytes_from_tensor(array)
            item["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            item["data"] = array.ravel().tolist()
        inputs.append(item)
    document: dict[str, Any] = {"inputs": inputs}
    if is_binary:
        document["parameters"] = {"binary_data_output": True}
    return json.dumps(document).encode(), tail


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a server says about a model.

    Attributes:
        signature: Its inputs and outputs.
        is_binary: Whether the server takes tensors as bytes.
    """

    signature: Signature
    is_binary: bool


def read_model(url: str, service: str, *, timeout_s: float = 10.0) -> ModelDescription:
    """Ask any server of the Open Inference Protocol what a model takes.

    Raises:
        EndpointError: It cannot be reached, or its answer cannot be understood.
        NotFoundError: It has no such model.
    """
    client = EndpointClient(url, service, timeout_s=timeout_s)
    try:
        model = client.metadata()
    finally:
        client.close()
    server = _get_json(url, "/v2", timeout_s)
    try:
        inputs, outputs = (
            tuple(_spec(item) for item in model[side]) for side in ("inputs", "outputs")
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise EndpointError(
            f"{url} describes `{service}` in a way that is not the Open Inference Protocol: {exc}",
            hint="check the URL and the name of the model",
        ) from exc
    extensions = server.get("extensions") or ()
    return ModelDescription(
        Signature(inputs=inputs, outputs=outputs), "binary_tensor_data" in extensions
    )


def _get_json(url: str, path: str, timeout_s: float) -> dict[str, Any]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        return dict(json.loads(connection.getresponse().read()))
    except _RAW_ERRORS as exc:
        raise EndpointError(
            f"{url}{path} cannot be read: {exc or type(exc).__name__}",
            hint="check that a server of the Open Inference Protocol (V2) answers there",
        ) from exc
    finally:
        connection.close()


def _spec(item: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(size) for size in item["shape"])
    return TensorSpec(name=item["name"], dtype=dtype_name(item["datatype"]), shape=shape)
