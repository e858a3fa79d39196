"""A client of a running server: inference, readiness and the control endpoints.

Speaks the Open Inference Protocol (V2) over HTTP with binary tensors, and needs nothing but the
standard library and numpy.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.certificates import trusting_context
from fairlead.backends.openinference import bytes_from_tensor, numpy_dtype, tensor_from_bytes
from fairlead.core.endpoint import Endpoint, TrafficSplit
from fairlead.core.errors import (
    DataError,
    EndpointError,
    FairleadError,
    NotFoundError,
    OverloadedError,
    UsageError,
)
from fairlead.core.ports import Feeds

__all__ = ["EndpointClient", "InferResult", "OutcomePage", "RequestOutcome"]

_HEADER_LENGTH = "Inference-Header-Content-Length"
_CHECK = "check that the server still runs with `fairlead serve status`"


@dataclass(frozen=True, slots=True)
class InferResult:
    """One answer of a server.

    Attributes:
        outputs: Name → array.
        arm: The arm that answered, `baseline` or `candidate`.
        version: Version of the bundle behind it.
        id: Id of the request.
    """

    outputs: dict[str, NDArray[Any]]
    arm: str
    version: str
    id: str


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What became of one request, as the server's ring remembers it.

    Attributes:
        seq: Number of the outcome, from 1, without gaps.
        id: Id of the request.
        arm: The arm that ran it.
        version: Version of the bundle behind it.
        status: HTTP status; 200 when it was answered.
        run_ms: Time the model ran, in ms.
        total_ms: Time from arrival to answer, in ms.
        prediction: Predicted label or value; a list for a request of several rows; None when
            it failed.
        at: End of the request, seconds since the epoch.
    """

    seq: int
    id: str
    arm: str
    version: str
    status: int
    run_ms: float
    total_ms: float
    prediction: Any
    at: float


@dataclass(frozen=True, slots=True)
class OutcomePage:
    """Some outcomes in order, and where to go on.

    Attributes:
        outcomes: The outcomes.
        next: What to pass as `after` for the ones that follow.
        missed: Outcomes after `after` that the ring had already forgotten.
    """

    outcomes: tuple[RequestOutcome, ...]
    next: int
    missed: int


class EndpointClient:
    """Talks to one service; safe to use from several threads, one connection each."""

    def __init__(
        self,
        url: str,
        service: str,
        admin_token: str | None = None,
        *,
        timeout_s: float = 30.0,
        certificate: str | None = None,
    ) -> None:
        """Remember where the server is; nothing is sent yet.

        Args:
            url: Base URL, for example `http://127.0.0.1:8080`.
            service: Name of the service, which is also the name of the model.
            admin_token: Opens the control endpoints, and the others where they need credentials.
            timeout_s: Longest wait for one answer, in seconds.
            certificate: PEM file of the server's certificate; None trusts the authorities of this
                machine.

        Raises:
            UsageError: It is no URL of a server.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as exc:
            raise UsageError(f"{url!r} has no valid port", hint="give http://HOST:PORT") from exc
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a server", hint="give http://HOST:PORT")
        self.url = url.rstrip("/")
        self.service = service
        self._token = admin_token
        self._timeout_s = timeout_s
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port
        self._certificate = certificate
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def ready(self) -> bool:
        """Return whether the server answers and is ready for inference."""
        try:
            status, _, _ = self._send("GET", "/v2/health/ready")
        except EndpointError:
            return False
        return status == 200

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata: versions, inputs and outputs.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return self._json("GET", f"/v2/models/{quote(self.service)}")

    def infer(
        self,
        feeds: Feeds,
        *,
        id: str | None = None,  # noqa: A002
        version: str | None = None,
        is_probe: bool = False,
    ) -> InferResult:
        """Run the model on one batch.

        Args:
            feeds: One array per input, first dimension the rows.
            id: Id of the request; the server makes one up when None.
            version: Ask for this version instead of leaving the choice to the traffic split.
            is_probe: Whether the request only tests the server; it is measured but not logged.

        Raises:
            DataError: The server found the input wrong.
            NotFoundError: It has no such model or version.
            OverloadedError: It refused the request to protect itself.
            EndpointError: It cannot be reached, or failed.
        """
        path = f"/v2/models/{quote(self.service)}"
        if version is not None:
            path += f"/versions/{quote(version)}"
        head, tensors = _encode(feeds, id)
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
        if is_probe:
            headers["fairlead-probe"] = "1"
        _, answer, body = self._checked("POST", f"{path}/infer", head + tensors, headers)
        try:
            outputs, answer_id = _decode(body, answer.get(_HEADER_LENGTH))
        except (ValueError, KeyError, TypeError) as exc:
            raise EndpointError(
                f"{self.url} gave an answer that is not of the Open Inference Protocol: {exc!r}",
                hint="check that the URL is that of an inference server",
            ) from exc
        return InferResult(
            outputs=outputs,
            arm=answer.get("fairlead-arm", ""),
            version=answer.get("fairlead-version", ""),
            id=answer_id,
        )

    def predict(self, rows: list[dict[str, Any]], *, id: str | None = None) -> dict[str, Any]:  # noqa: A002
        """Ask the plain JSON endpoint for predictions of rows given as column → value.

        Raises:
            DataError: A row does not fit the model.
            OverloadedError: The server refused the request to protect itself.
            EndpointError: It cannot be reached, or failed.
        """
        document: dict[str, Any] = {"rows": rows}
        if id is not None:
            document["id"] = id
        return self._json("POST", "/predict", document)

    def describe(self) -> Endpoint:
        """Return the endpoint as the server itself sees it; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return Endpoint.model_validate(self._json("GET", "/fairlead/service")["endpoint"])

    def traffic(self) -> TrafficSplit:
        """Return the share of the requests each arm gets; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return TrafficSplit.model_validate(self._json("GET", "/fairlead/service")["traffic"])

    def set_traffic(self, split: TrafficSplit) -> TrafficSplit:
        """Change the share of the requests each arm gets, from the next request on.

        Returns:
            The split that is now in force.

        Raises:
            DataError: The split names an unknown arm, or does not add up to 1.
            EndpointError: The server cannot be reached or refuses.
        """
        answer = self._json("PUT", "/fairlead/traffic", split.model_dump(mode="json"))
        return TrafficSplit.model_validate(answer)

    def outcomes(self, after: int = 0, limit: int = 1000) -> OutcomePage:
        """Return what became of the requests after number `after`; needs the admin token.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        answer = self._json("GET", f"/fairlead/outcomes?after={after:d}&limit={limit:d}")
        found = tuple(RequestOutcome(**item) for item in answer["outcomes"])
        return OutcomePage(found, answer["next"], answer["missed"])

    def metrics(self) -> str:
        """Return the server's metrics in Prometheus's text format.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return self._checked("GET", "/metrics")[2].decode()

    def statistics(self) -> dict[str, Any]:
        """Return the model's statistics, as the protocol's statistics extension gives them.

        Raises:
            NotFoundError: The server does not have the extension.
            EndpointError: The server cannot be reached or refuses.
        """
        return self._json("GET", f"/v2/models/{quote(self.service)}/stats")

    def close(self) -> None:
        """Close every connection; the client may be used again."""
        for thread in list(self._connections):
            self._drop(thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EndpointClient({self.url!r}, {self.service!r})"

    def _json(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        body = None if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        _, _, raw = self._checked(method, path, body, headers)
        try:
            answer = json.loads(raw)
        except ValueError as exc:
            raise EndpointError(
                f"{self.url}{path} answered with something that is not JSON: {raw[:80]!r}",
                hint="check that the URL is that of a Fairlead server",
            ) from exc
        return dict(answer)

    def _checked(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        status, answer, raw = self._send(method, path, body, headers)
        if status >= 400:
            raise _error(status, raw, f"{self.url}{path}")
        return status, answer, raw

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        sent = dict(headers or {})
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token}"
        thread = threading.get_ident()
        is_reused = thread in self._connections
        try:
            return self._exchange(method, path, body, sent)
        except (http.client.HTTPException, OSError) as exc:
            self._drop(thread)
            # A server may close an idle connection at any time: the first try tells.
            if is_reused and isinstance(exc, ConnectionError):
                return self._send(method, path, body, headers)
            raise EndpointError(
                f"{self.url} cannot be reached: {exc or type(exc).__name__}", hint=_CHECK
            ) from exc

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        thread = threading.get_ident()
        connection = self._connections.get(thread)
        if connection is None:
            connection = self._new_connection()
            self._connections[thread] = connection
        connection.request(method, path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        raw = answer.read()
        if answer.will_close:
            self._drop(thread)
        return answer.status, answer.headers, raw

    def _new_connection(self) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(
            self._host,
            self._port,
            timeout=self._timeout_s,
            context=None if self._certificate is None else trusting_context(self._certificate),
        )

    def _drop(self, thread: int) -> None:
        connection = self._connections.pop(thread, None)
        if connection is not None:
            connection.close()


def _encode(feeds: Feeds, id: str | None) -> tuple[bytes, bytes]:  # noqa: A002
    inputs = []
    parts = []
    for name, array in feeds.items():
        datatype, raw = bytes_from_tensor(np.asarray(array))
        parts.append(raw)
        inputs.append(
            {
                "name": name,
                "datatype": datatype,
                "shape": list(np.shape(array)),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
    head: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if id is not None:
        head["id"] = id
    return json.dumps(head).encode(), b"".join(parts)


def _decode(body: bytes, header_length: str | None) -> tuple[dict[str, NDArray[Any]], str]:
    at = len(body) if header_length is None else int(header_length)
    document = json.loads(body[:at])
    view = memoryview(body)
    outputs: dict[str, NDArray[Any]] = {}
    for item in document["outputs"]:
        shape = tuple(item["shape"])
        size = item.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = np.array(item["data"], dtype=numpy_dtype(item["datatype"]))
            outputs[item["name"]] = data.reshape(shape)
            continue
        outputs[item["name"]] = tensor_from_bytes(
            view[at : at + size], name=item["name"], datatype=item["datatype"], shape=shape
        )
        at += size
    return outputs, str(document.get("id", ""))


_ERRORS: dict[int, type[FairleadError]] = {
    400: DataError,
    404: NotFoundError,
    413: DataError,
    422: DataError,
    429: OverloadedError,
    503: OverloadedError,
}


def _error(status: int, raw: bytes, where: str) -> FairleadError:
    try:
        document = json.loads(raw)
        message, hint = str(document["error"]), str(document.get("hint") or _CHECK)
    except (ValueError, KeyError, TypeError):
        message, hint = raw[:200].decode(errors="replace") or "no text", _CHECK
    kind = _ERRORS.get(status, EndpointError)
    return kind(f"{where} answered {status}: {message}", hint=hint)
