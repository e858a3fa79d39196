"""What a client does, without any socket: each call says what to send, and hears what came of it.

A call is a generator of steps, so that the client that waits and the one that awaits share all of
it: what is written on the wire, when it is tried again, and which error a failure becomes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.client_policy import (
    HedgePolicy,
    LatencyWindow,
    RetryBudget,
    RetryPolicy,
    chance,
)
from fairlead.backends.http_wire import Response, WireError, request_bytes
from fairlead.backends.openinference import (
    bytes_from_tensor,
    datatype_of,
    numpy_dtype,
    tensor_from_bytes,
)
from fairlead.core.errors import (
    DataError,
    DeadlineError,
    EndpointError,
    FairleadError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    RateLimitedError,
    UnauthenticatedError,
    UsageError,
)
from fairlead.core.ports import Feeds

__all__ = [
    "Calls",
    "Exchange",
    "Failure",
    "InferResult",
    "Pause",
    "Place",
    "Steps",
    "encode_inference",
]

_HEADER_LENGTH = "Inference-Header-Content-Length"
_CHECK = "check that the server still runs with `fairlead serve status`"
T = TypeVar("T")


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
class Exchange:
    """A step: send a request and bring the answer.

    Attributes:
        data: The whole request.
        deadline: When nobody waits any more, in seconds of `time.monotonic`.
        hedge_after_s: Seconds after which a second request may be sent, or None.
        may_hedge: Says at that moment whether it really may.
    """

    data: bytes
    deadline: float
    hedge_after_s: float | None
    may_hedge: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer came.

    Attributes:
        error: Why.
        is_refused: Whether nothing was sent, so that nothing can have happened.
    """

    error: Exception
    is_refused: bool = False


Steps = Generator[Exchange | Pause, Response | Failure | None, T]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is.

    Attributes:
        url: Base URL without a slash at its end.
        host: Name or address.
        port: Port.
        netloc: Value of the header `Host`.
        path: What stands before every path.
        is_tls: Whether it is `https`.
    """

    url: str
    host: str
    port: int
    netloc: str
    path: str
    is_tls: bool

    @classmethod
    def parse(cls, url: str) -> Place:
        """Read a URL.

        Raises:
            UsageError: It is no URL of a server.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise UsageError(
                f"{url!r} has no valid host or port", hint="give http://HOST:PORT"
            ) from exc
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a server", hint="give http://HOST:PORT")
        is_tls = parts.scheme == "https"
        netloc = parts.netloc.rpartition("@")[2]
        default = 443 if is_tls else 80
        path = parts.path.rstrip("/")
        return cls(url.rstrip("/"), parts.hostname, port or default, netloc, path, is_tls)


class Calls:
    """The calls of one client to one model."""

    def __init__(
        self,
        place: Place,
        model: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        retry: RetryPolicy,
        hedge: HedgePolicy | None,
    ) -> None:
        """Remember whom to ask, and how often.

        Args:
            place: Where the server is.
            model: Name of the model.
            headers: Sent with every request, for example credentials.
            timeout_s: Time for a whole call, retries and pauses included, in seconds.
            retry: When a request is sent again.
            hedge: When a second request is sent for a slow one; None never.
        """
        self.place = place
        self.model = model
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._retry = retry
        self._hedge = hedge
        self._budget = RetryBudget(retry)
        self._latencies = LatencyWindow()

    def infer(
        self,
        feeds: Feeds,
        *,
        id: str | None = None,  # noqa: A002
        version: str | None = None,
        timeout_s: float | None = None,
        is_probe: bool = False,
        is_binary: bool = True,
    ) -> Steps[InferResult]:
        """Run the model on one batch; see `Client.infer`."""
        path = f"/v2/models/{quote(self.model, safe='')}"
        if version is not None:
            path += f"/versions/{quote(version, safe='')}"
        body, headers = encode_inference(feeds, id=id, is_binary=is_binary)
        if is_probe:
            headers["fairlead-probe"] = "1"
        answer = yield from self.checked(
            "POST", f"{path}/infer", body, headers, timeout_s=timeout_s, may_hedge=True
        )
        try:
            outputs, answer_id = _decode(answer.body, answer.headers.get(_HEADER_LENGTH.lower()))
        except (ValueError, KeyError, TypeError) as exc:
            raise EndpointError(
                f"{self.place.url} gave an answer that is not of the Open Inference Protocol: "
                f"{exc!r}",
                hint="check that the URL is that of an inference server",
            ) from exc
        arm = answer.headers.get("fairlead-arm", "")
        return InferResult(outputs, arm, answer.headers.get("fairlead-version", ""), answer_id)

    def predict(
        self,
        rows: list[dict[str, Any]],
        *,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
    ) -> Steps[dict[str, Any]]:
        """Ask the plain JSON endpoint; see `Client.predict`."""
        document: dict[str, Any] = {"rows": rows} | ({} if id is None else {"id": id})
        return self.json("POST", "/predict", document, timeout_s=timeout_s, may_hedge=True)

    def ready(self) -> Steps[bool]:
        """Return whether the server answers and is ready for inference."""
        try:
            answer = yield from self.checked("GET", "/v2/health/ready", attempts=1)
        except EndpointError:
            return False
        return answer.status == 200

    def metadata(self) -> Steps[dict[str, Any]]:
        """Return the model's metadata: versions, inputs and outputs."""
        return self.json("GET", f"/v2/models/{quote(self.model, safe='')}")

    def statistics(self) -> Steps[dict[str, Any]]:
        """Return the model's statistics, as the protocol's statistics extension gives them."""
        return self.json("GET", f"/v2/models/{quote(self.model, safe='')}/stats")

    def server_metadata(self) -> Steps[dict[str, Any]]:
        """Return what the server says of itself: name, version, extensions of the protocol."""
        return self.json("GET", "/v2")

    def text(self, path: str) -> Steps[str]:
        """Return a page as text."""
        return (yield from self.checked("GET", path)).body.decode("utf-8", "replace")

    def json(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        timeout_s: float | None = None,
        may_hedge: bool = False,
        attempts: int | None = None,
    ) -> Steps[dict[str, Any]]:
        """Send JSON and receive an object."""
        answer = yield from self.document(
            method, path, document, timeout_s=timeout_s, may_hedge=may_hedge, attempts=attempts
        )
        if isinstance(answer, dict):
            return answer
        raise EndpointError(
            f"{self.place.url}{path} answered with {type(answer).__name__}, expected an object",
            hint="check that the URL is that of a Fairlead server",
        )

    def document(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        timeout_s: float | None = None,
        may_hedge: bool = False,
        attempts: int | None = None,
    ) -> Steps[Any]:
        """Send and receive JSON of any kind."""
        body = None if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        answer = yield from self.checked(
            method, path, body, headers, timeout_s=timeout_s, may_hedge=may_hedge,
            attempts=attempts,
        )  # fmt: skip
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            raise EndpointError(
                f"{self.place.url}{path} answered with something that is not JSON: "
                f"{answer.body[:80]!r}",
                hint="check that the URL is that of a Fairlead server",
            ) from exc

    def checked(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        may_hedge: bool = False,
        attempts: int | None = None,
    ) -> Steps[Response]:
        """Send a request until it succeeds, may not be repeated, or its time is up.

        Every call may be repeated: inference changes nothing, and neither does setting what is
        set already.
        """
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait_s
        where = f"{self.place.url}{path}"
        self._budget.deposit()
        attempt = 0
        while True:
            attempt += 1
            left_s = deadline - time.monotonic()
            started = time.monotonic()
            result = yield Exchange(
                data=self._bytes(method, path, body, headers or {}, left_s),
                deadline=deadline,
                hedge_after_s=self._latencies.hedge_after_s(self._hedge) if may_hedge else None,
                may_hedge=self._budget.take,
            )
            if isinstance(result, Response) and result.status < 400:
                self._latencies.add(time.monotonic() - started)
                return result
            pause_s = self._pause_s(result, attempt, attempts or self._retry.attempts)
            if pause_s is None or time.monotonic() + pause_s >= deadline or not self._budget.take():
                raise self._error(result, where, wait_s) from (
                    result.error if isinstance(result, Failure) else None
                )
            yield Pause(pause_s)

    def _bytes(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], left_s: float
    ) -> bytes:
        # The server stops working on what nobody waits for any more.
        patience = {"X-Request-Timeout-Ms": str(max(1, math.ceil(left_s * 1e3)))}
        place = self.place
        try:
            return request_bytes(
                method, place.path + path, place.netloc,
                {**self._headers, **patience, **headers}, body,
            )  # fmt: skip
        except (WireError, UnicodeEncodeError) as exc:
            raise UsageError(
                f"the request cannot be written: {exc}",
                hint="use plain text in URL, version and credentials",
            ) from exc

    def _pause_s(
        self, result: Response | Failure | None, attempt: int, attempts: int
    ) -> float | None:
        """Return how long to wait before the next attempt, or None when there is none."""
        if attempt >= attempts:
            return None
        if isinstance(result, Response):
            if not self._retry.is_retried(result.status):
                return None
            return self._retry.backoff_s(attempt, _retry_after_s(result), chance=chance())
        if isinstance(result, Failure) and isinstance(result.error, TimeoutError):
            return None
        return self._retry.backoff_s(attempt, 0.0, chance=chance())

    def _error(self, result: Response | Failure | None, where: str, wait_s: float) -> FairleadError:
        if isinstance(result, Response):
            return _refusal(result, where)
        error = result.error if isinstance(result, Failure) else None
        if isinstance(error, TimeoutError):
            return DeadlineError(
                f"{where} gave no answer within {wait_s:g} s",
                hint="give it more time, or send fewer rows at once",
            )
        return EndpointError(
            f"{self.place.url} cannot be reached: {error or type(error).__name__}", hint=_CHECK
        )


_ERRORS: dict[int, type[FairleadError]] = {
    400: DataError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    413: DataError,
    422: DataError,
    504: DeadlineError,
}


def _refusal(answer: Response, where: str) -> FairleadError:
    try:
        document = json.loads(answer.body)
        message, hint = str(document["error"]), str(document.get("hint") or _CHECK)
    except (ValueError, KeyError, TypeError):
        message = answer.body[:200].decode("utf-8", "replace") or "no text"
        hint = _CHECK
    text = f"{where} answered {answer.status}: {message}"
    if answer.status == 429:
        wait_s = _retry_after_s(answer) or 1.0
        return RateLimitedError(text, hint=hint, retry_after_s=wait_s)
    if answer.status == 503:
        wait_s = _retry_after_s(answer) or 1.0
        return OverloadedError(text, hint=hint, retry_after_s=wait_s)
    return _ERRORS.get(answer.status, EndpointError)(text, hint=hint)


def _retry_after_s(answer: Response) -> float:
    try:
        return max(0.0, float(answer.headers.get("retry-after", "")))
    except ValueError:
        return 0.0


def encode_inference(
    feeds: Feeds,
    *,
    id: str | None = None,  # noqa: A002
    is_binary: bool = True,
    datatypes: Mapping[str, str] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Write a request for inference.

    Args:
        feeds: One array per input, first dimension the rows.
        id: Id of the request, or None.
        is_binary: Whether tensors go as bytes; else as JSON.
        datatypes: Input → datatype where the array does not tell, for example BF16.

    Returns:
        The body, and the headers that say how to read it.
    """
    inputs = []
    parts = []
    for name, given in feeds.items():
        array = np.asarray(given)
        item: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        if is_binary:
            datatype, raw = bytes_from_tensor(array)
            item["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            datatype = "BYTES" if array.dtype.kind in "OUS" else datatype_of(array.dtype.name)
            item["data"] = array.ravel().tolist()
        item["datatype"] = (datatypes or {}).get(name, datatype)
        inputs.append(item)
    document: dict[str, Any] = {"inputs": inputs} | ({} if id is None else {"id": id})
    if not is_binary:
        return json.dumps(document).encode(), {"Content-Type": "application/json"}
    head = json.dumps(document | {"parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    return b"".join((head, *parts)), headers


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
