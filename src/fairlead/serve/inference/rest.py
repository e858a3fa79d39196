"""HTTP: the Open Inference Protocol (V2), plain JSON for people, metrics and control.

Parses, delegates to the dataplane and converts; nothing is decided here.
"""

from __future__ import annotations

import hmac
import logging
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fairlead.core.endpoint import Endpoint, TrafficSplit
from fairlead.core.errors import DataError, NotFoundError, UsageError
from fairlead.core.values import describe_validation_error
from fairlead.core.version import __version__
from fairlead.serve.inference import openinference as oip
from fairlead.serve.inference.answer_frames import AnswerFrames
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.bus import Bus, LocalBus
from fairlead.serve.inference.dataplane import Dataplane, InferenceRequest, retry_after_s
from fairlead.serve.inference.metrics import ServingMetrics
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.plain import feeds_from_rows, predictions_from_outputs
from fairlead.serve.inference.problems import describe, status_of
from fairlead.serve.inference.repository import Repository

__all__ = ["Service", "build_app"]

_log = logging.getLogger(__name__)

Endpoint_ = Callable[[Request], Awaitable[Response]]
_MAX_OUTCOMES = 10_000
_DISCARDED_BYTES = 256 << 20
"""A client that sends too much hears of it only once it has sent: so much is read and forgotten."""


@dataclass(slots=True)
class Service:
    """What the HTTP layer needs to know.

    Attributes:
        repository: Finds what answers the requests of a model.
        outcomes: The ring that the control endpoints read.
        metrics: What `/metrics` shows, or None when measuring is off.
        admin_token: Opens the control endpoints.
        max_body_bytes: Largest body after decompression.
        bus: Reaches every worker of the service.
        number: Which of the workers this is, from 0.
        endpoint: Where the service answers; set once it listens.
        is_draining: Whether it is about to stop.
    """

    repository: Repository
    outcomes: OutcomeRing
    metrics: ServingMetrics | None
    admin_token: str = field(repr=False)
    max_body_bytes: int
    bus: Bus = field(default_factory=LocalBus)
    number: int = 0
    endpoint: Endpoint | None = None
    is_draining: bool = False

    @property
    def dataplane(self) -> Dataplane:
        """Answers the requests of the default model."""
        return self.repository.dataplane()


def build_app(service: Service) -> Starlette:
    """Return the ASGI application of a service."""
    one = "/v2/models/{model}"
    version = one + "/versions/{version}"
    handlers = _Handlers(service)
    get, post, put = ["GET"], ["POST"], ["PUT"]
    table: list[tuple[str, Endpoint_, list[str]]] = [
        (one + "/infer", handlers.infer, post),
        (version + "/infer", handlers.infer, post),
        ("/predict", handlers.predict, post),
        ("/v2", handlers.server, get),
        ("/v2/health/live", handlers.live, get),
        ("/v2/health/ready", handlers.ready, get),
        (one, handlers.model, get),
        (version, handlers.model, get),
        (one + "/ready", handlers.model_ready, get),
        (version + "/ready", handlers.model_ready, get),
        ("/metrics", handlers.metrics, get),
        ("/fairlead/service", handlers.service, get),
        ("/fairlead/traffic", handlers.traffic, put),
        ("/fairlead/outcomes", handlers.outcomes, get),
    ]
    routes = [Route(path, handlers.guarded(call), methods=ways) for path, call, ways in table]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})


class _Handlers:
    """One method per endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def _dataplane(self) -> Dataplane:
        return self._service.dataplane

    def guarded(self, call: Endpoint_) -> Endpoint_:
        """Turn every error into an answer with a status, a sentence and a hint."""

        async def answer(request: Request) -> Response:
            try:
                return await call(request)
            except HTTPException:
                raise
            except ClientDisconnect:
                return Response(status_code=400)  # Nobody reads it.
            except Exception as exc:  # noqa: BLE001 (the outer loop of a request)
                return self._problem(exc)

        return answer

    async def infer(self, request: Request) -> Response:
        arrived = time.perf_counter()
        version = request.path_params.get("version")
        try:
            body = await self._body(request)
            self._check_model(request)
            message = oip.decode(body, request.headers.get(oip.HEADER_LENGTH))
            arm = self._dataplane.choose_arm(version) if version else self._baseline
            oip.check_requested(message, arm.signature)
        except Exception as exc:
            self._count_rejected(exc)
            raise
        answer = await self._dataplane.infer(
            InferenceRequest(
                feeds=message.feeds,
                arrived=arrived,
                id=message.id or _header_id(request),
                version=version,
                trace_id=_trace_id(request),
                is_probe=request.headers.get("fairlead-probe") == "1",
            )
        )
        frames = AnswerFrames(self._dataplane.service, answer.arm.version, answer.arm.signature)
        raw, length = frames.write(message, answer.id, answer.outputs)
        headers = _arm_headers(answer.arm)
        if length is None:
            return Response(raw, headers=headers, media_type="application/json")
        headers[oip.HEADER_LENGTH] = str(length)
        return Response(raw, headers=headers, media_type="application/octet-stream")

    async def predict(self, request: Request) -> Response:
        arrived = time.perf_counter()
        try:
            document = oip.parse_json(await self._body(request))
            arm = self._baseline
            feeds = feeds_from_rows(document.get("rows"), arm.bundle.manifest, arm.signature)
            request_id = document.get("id") or _header_id(request)
            if not isinstance(request_id, str):
                raise DataError(f"`id` is {request_id!r}, expected text", hint="quote the id")
        except Exception as exc:
            self._count_rejected(exc)
            raise
        answer = await self._dataplane.infer(
            InferenceRequest(feeds, arrived, request_id, None, _trace_id(request))
        )
        return _json(
            {
                "id": answer.id,
                "model": self._dataplane.service,
                "version": answer.arm.version,
                "predictions": predictions_from_outputs(answer.arm.bundle.manifest, answer.outputs),
            },
            headers=_arm_headers(answer.arm),
        )

    async def server(self, _: Request) -> Response:
        return _json(
            {"name": "fairlead", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        is_ready = not self._service.is_draining
        return _json({"ready": is_ready}, status=200 if is_ready else 503)

    async def model(self, request: Request) -> Response:
        arm = self._arm_of(request)
        return _json(
            oip.model_metadata(
                self._dataplane.service,
                self._dataplane.versions,
                "onnxruntime_onnx" if arm.bundle.manifest.kind == "onnx" else "mlflow_pyfunc",
                arm.signature,
            )
        )

    async def model_ready(self, request: Request) -> Response:
        self._arm_of(request)
        is_ready = not self._service.is_draining
        document = {"name": self._dataplane.service, "ready": is_ready}
        return _json(document, status=200 if is_ready else 503)

    async def metrics(self, _: Request) -> Response:
        metrics = self._service.metrics
        if metrics is None:
            raise NotFoundError("metrics are switched off", hint="serve with `--set metrics=true`")
        answer = await self._service.bus.ask("metrics.read", {})
        return Response(answer["text"], media_type=metrics.content_type)

    async def service(self, request: Request) -> Response:
        self._check_token(request)
        endpoint = self._service.endpoint
        return _json(
            {
                "endpoint": None if endpoint is None else endpoint.model_dump(mode="json"),
                "traffic": self._dataplane.traffic.split.model_dump(mode="json"),
            }
        )

    async def traffic(self, request: Request) -> Response:
        self._check_token(request)
        document = oip.parse_json(await self._body(request))
        try:
            split = TrafficSplit.model_validate(document)
        except ValidationError as exc:
            raise UsageError(
                f"this is no traffic split: {describe_validation_error(exc)}",
                hint='send {"weights": {"baseline": 0.9, "candidate": 0.1}, "shadow": null}',
            ) from exc
        told = split.model_dump(mode="json")
        await self._service.bus.broadcast("traffic.set", told, keep="traffic")
        return _json(told)

    async def outcomes(self, request: Request) -> Response:
        self._check_token(request)
        after = _whole(request, "after", 0)
        limit = min(_whole(request, "limit", 1000), _MAX_OUTCOMES)
        asked = {"after": after, "limit": limit}
        return _json(await self._service.bus.ask("outcomes.read", asked))

    @property
    def _baseline(self) -> Arm:
        return next(iter(self._dataplane.arms.values()))

    def _check_model(self, request: Request) -> None:
        name = request.path_params["model"]
        if name != self._dataplane.service:
            raise NotFoundError(
                f"there is no model {name[:80]!r}", hint=f"this is `{self._dataplane.service}`"
            )

    def _arm_of(self, request: Request) -> Arm:
        self._check_model(request)
        version = request.path_params.get("version")
        return self._dataplane.choose_arm(version) if version else self._baseline

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {self._service.admin_token}".encode()):
            raise HTTPException(
                401,
                "this endpoint needs the admin token of the service",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, request: Request) -> bytes:
        limit = self._service.max_body_bytes
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > limit + _DISCARDED_BYTES:
                break
            else:
                parts.clear()
        if size > limit:
            raise _too_large(limit)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        coding = request.headers.get("content-encoding", "identity")
        return body if coding == "identity" else _decompress(body, coding, limit)

    def _count_rejected(self, error: Exception) -> None:
        if self._service.metrics is not None:
            status = error.status_code if isinstance(error, HTTPException) else status_of(error)
            self._service.metrics.count_rejected(status)

    def _problem(self, error: Exception) -> Response:
        status = status_of(error)
        if status == 500:
            _log.error("a request failed", exc_info=error)
        message, hint = describe(error)
        wait_s = retry_after_s(self._dataplane, error)
        headers = {} if wait_s is None else {"retry-after": str(wait_s)}
        return _json({"error": message, "hint": hint}, status=status, headers=headers)


_HINTS = {
    401: "send `Authorization: Bearer TOKEN`; the token stands in the workspace's service file",
    404: "the endpoints are /v2/…, /predict, /metrics and /fairlead/…",
    405: "see the Open Inference Protocol for the method of each endpoint",
    413: "send fewer rows at once, or raise `max_body_bytes`",
    415: "send the body as it is, or with gzip or deflate",
}


async def _http_problem(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    document = {"error": error.detail, "hint": _HINTS.get(error.status_code, "")}
    return _json(document, status=error.status_code, headers=dict(error.headers or {}))


def _json(
    document: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    raw = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
    return Response(raw, status, headers, "application/json")


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limit} bytes")


def _decompress(body: bytes, coding: str, limit: int) -> bytes:
    if coding not in {"gzip", "deflate"}:
        raise HTTPException(415, f"content encoding {coding[:40]!r} is not known")
    # 47: accept the headers of both gzip and zlib.
    stream = zlib.decompressobj(47)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as exc:
        raise DataError(
            f"the body is not {coding}: {exc}", hint="leave Content-Encoding out"
        ) from exc
    if len(plain) > limit:
        raise _too_large(limit)
    if not stream.eof:
        raise DataError(f"the {coding} body ends too early", hint="send the whole body")
    return plain


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(
            f"`{name}` is {text[:40]!r}, expected a whole number", hint=f"give {name}=0 or more"
        )
    return int(text)


def _arm_headers(arm: Arm) -> dict[str, str]:
    return {"fairlead-arm": arm.name, "fairlead-version": arm.version}


def _header_id(request: Request) -> str:
    return request.headers.get("x-request-id", "")[:256]


def _trace_id(request: Request) -> str:
    parts = request.headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
