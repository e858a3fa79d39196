"""Connections that send rows to a server: NVIDIA's client, our own, and a raw one for load."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from fairlead.backends.access import OPEN, Access
from fairlead.backends.client_calls import Place, encode_inference
from fairlead.backends.endpoint import EndpointClient
from fairlead.backends.http_wire import request_bytes
from fairlead.backends.load import Answer, Sender
from fairlead.backends.openinference import datatype_of, dtype_name
from fairlead.backends.triton_client import TritonCaller
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

_RAW_ERRORS = (OSError, HTTPException, ValueError, IndexError)


def client_name(url: str = "") -> str:
    """Return the client that `sender_factory` uses for a URL.

    `tritonclient` where it is installed; our own over TLS, because only that one can be told to
    trust a single certificate.
    """
    if url.startswith("https://"):
        return "fairlead"
    try:
        import tritonclient.http  # noqa: F401
    except ImportError:
        return "fairlead"
    return "tritonclient"


def sender_factory(
    url: str,
    service: str,
    feeds: Feeds,
    signature: Signature,
    *,
    timeout_s: float = 30.0,
    access: Access = OPEN,
) -> Callable[[], Sender]:
    """Return what opens a connection that sends rows of `feeds`, one per request.

    Args:
        url: Base URL of the server.
        service: Name of the model.
        feeds: One array per input, first dimension the rows.
        signature: Datatypes of the inputs.
        timeout_s: Longest wait for one answer, in seconds.
        access: Credentials, and the certificates to trust and to show.
    """
    if client_name(url) == "tritonclient":
        shown = access.headers()
        return lambda: TritonSender(
            url, service, feeds, signature, timeout_s=timeout_s, headers=shown
        )
    return lambda: EndpointSender(url, service, feeds, timeout_s=timeout_s, access=access)


class TritonSender:
    """Sends through NVIDIA's `tritonclient`, which knows nothing of Fairlead."""

    def __init__(
        self,
        url: str,
        service: str,
        feeds: Feeds,
        signature: Signature,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Open nothing yet; see `sender_factory`."""
        self._feeds = feeds
        self._headers = headers
        self._caller = TritonCaller(url, service, signature, timeout_s=timeout_s)

    def send(self, row: int, request_id: str) -> Answer:
        """Send one row."""
        one = {name: array[row : row + 1] for name, array in self._feeds.items()}
        return self._caller.infer(one, id=request_id, headers=self._headers)

    def close(self) -> None:
        """Close the connection."""
        self._caller.close()


class EndpointSender:
    """Sends through our own client, which needs no further library."""

    def __init__(
        self, url: str, service: str, feeds: Feeds, *, timeout_s: float, access: Access = OPEN
    ) -> None:
        """Open nothing yet; see `sender_factory`."""
        self._client = EndpointClient(url, service, timeout_s=timeout_s, access=access)
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

    def __init__(
        self, url: str, bodies: list[bytes], *, timeout_s: float, access: Access = OPEN
    ) -> None:
        """Open nothing yet.

        Args:
            url: Base URL of the server.
            bodies: One whole HTTP request per row; see `prepare_requests`.
            timeout_s: Longest wait for one answer, in seconds.
            access: Certificates to trust and to show; credentials stand in the requests.

        Raises:
            UsageError: It is no URL of a server, or a certificate cannot be read.
        """
        place = Place.parse(url)
        self._address = (place.host, place.port)
        self._tls = access.context() if place.is_tls else None
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
            self._socket = self._connected()
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

    def _connected(self) -> socket.socket:
        link = socket.create_connection(self._address, self._timeout_s)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return (
            link
            if self._tls is None
            else self._tls.wrap_socket(link, server_hostname=self._address[0])
        )

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
    url: str,
    service: str,
    feeds: Feeds,
    signature: Signature,
    *,
    is_binary: bool,
    access: Access = OPEN,
) -> list[bytes]:
    """Write one whole HTTP request per row.

    Args:
        url: Base URL of the server.
        service: Name of the model.
        feeds: One array per input, first dimension the rows.
        signature: Datatypes of the inputs.
        is_binary: Whether the server takes tensors as bytes; else they go as JSON.
        access: Credentials that every request shows.
    """
    place = Place.parse(url)
    path = f"{place.path}/v2/models/{quote(service)}/infer"
    datatypes = {spec.name: datatype_of(spec.dtype) for spec in signature.inputs}
    # Load is no user: our own server answers it, but keeps it out of the prediction log.
    headers = {"Connection": "keep-alive", "fairlead-probe": "1", **access.headers()}
    count = len(next(iter(feeds.values())))
    requests = []
    for row in range(count):
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        body, more = encode_inference(one, is_binary=is_binary, datatypes=datatypes)
        requests.append(request_bytes("POST", path, place.netloc, headers | more, body))
    return requests


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a server says about a model.

    Attributes:
        signature: Its inputs and outputs.
        is_binary: Whether the server takes tensors as bytes.
    """

    signature: Signature
    is_binary: bool


def read_model(
    url: str, service: str, *, timeout_s: float = 10.0, access: Access = OPEN
) -> ModelDescription:
    """Ask any server of the Open Inference Protocol what a model takes.

    Raises:
        EndpointError: It cannot be reached, or its answer cannot be understood.
        NotFoundError: It has no such model.
    """
    with EndpointClient(url, service, timeout_s=timeout_s, access=access) as client:
        model = client.metadata()
        server = client.server_metadata()
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


def _spec(item: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(size) for size in item["shape"])
    return TensorSpec(name=item["name"], dtype=dtype_name(item["datatype"]), shape=shape)
