"""`/predict` with rows as objects, and `/invocations` as MLflow's scoring server takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairlead.core.errors import DataError
from fairlead.serve.inference import openinference as oip
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.http.asking import (
    Asking,
    asking_of,
    body_of,
    deadline_of,
    priority_of,
)
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.inference import CACHE_HIT, Inference, Reading, arm_headers
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.http.wire import JSON, json_bytes
from fairlead.serve.inference.invocations import feeds_from_invocation, invocation_answer
from fairlead.serve.inference.plain import feeds_from_rows, predictions_from_outputs
from fairlead.serve.inference.security.callers import MAY_PROBE

__all__ = ["People"]

Write = Callable[[Answer], dict[str, Any]]
Understand = Callable[[Dataplane, Asking, bytes], tuple[Any, dict[str, Any]]]


class People:
    """One method per endpoint; see `Handler`."""

    def __init__(self, inference: Inference, max_body_bytes: int) -> None:
        """Prepare.

        Args:
            inference: Finds dataplanes, refuses and counts.
            max_body_bytes: Largest body after decompression.
        """
        self._inference = inference
        self._max_body_bytes = max_body_bytes
        self._predicting = Reading(self._reader(_understand_rows), self._predict)
        self._invoking = Reading(self._reader(_understand_invocation), self._invoke)

    def predict(self, exchange: Exchange, route: Route) -> None:
        """Answer rows with one object per row."""
        self._inference.on_request(exchange, route, self._predicting)

    def invoke(self, exchange: Exchange, route: Route) -> None:
        """Answer what MLflow's clients send."""
        self._inference.on_request(exchange, route, self._invoking)

    def _predict(
        self, plane: Dataplane, exchange: Exchange, _: Route, request: InferenceRequest
    ) -> None:
        def write(answer: Answer) -> dict[str, Any]:
            return {
                "id": answer.id,
                "model": plane.service,
                "version": answer.arm.version,
                "predictions": predictions_from_outputs(answer.arm.bundle.manifest, answer.outputs),
            }

        self._submit(plane, exchange, request, write)

    def _invoke(
        self, plane: Dataplane, exchange: Exchange, _: Route, request: InferenceRequest
    ) -> None:
        def write(answer: Answer) -> dict[str, Any]:
            return invocation_answer(answer.arm.bundle.manifest, answer.outputs)

        self._submit(plane, exchange, request, write)

    def _reader(self, understand: Understand) -> Callable[..., InferenceRequest]:
        def read(plane: Dataplane, exchange: Exchange, _: Route) -> InferenceRequest:
            asking = asking_of(exchange.head)
            body = body_of(exchange.body, asking.coding, self._max_body_bytes)
            feeds, document = understand(plane, asking, body)
            parameters = _parameters_of(document)
            return InferenceRequest(
                feeds,
                exchange.arrived,
                _id_of(document) or asking.request_id,
                None,
                asking.trace_id,
                asking.is_probe and exchange.caller in MAY_PROBE,
                deadline_of(asking, parameters, exchange.arrived),
                priority_of(parameters),
                exchange.caller,
            )

        return read

    def _submit(
        self, plane: Dataplane, exchange: Exchange, request: InferenceRequest, write: Write
    ) -> None:
        def done(ending: Answer | Exception) -> None:
            if isinstance(ending, Exception):
                self._inference.refuse(exchange, ending)
                return
            try:
                body = json_bytes(write(ending))
            except Exception as exc:  # noqa: BLE001 (becomes the answer)
                self._inference.refuse(exchange, exc)
                return
            headers = JSON + arm_headers(ending.arm)
            exchange.answer(200, body, headers + CACHE_HIT if ending.is_cached else headers)

        exchange.on_gone = plane.submit(request, done).cancel


def _understand_rows(plane: Dataplane, _: Asking, body: bytes) -> tuple[Any, dict[str, Any]]:
    document = oip.parse_json(body)
    arm = plane.baseline
    return feeds_from_rows(document.get("rows"), arm.bundle.manifest, arm.signature), document


def _understand_invocation(
    plane: Dataplane, asking: Asking, body: bytes
) -> tuple[Any, dict[str, Any]]:
    arm = plane.baseline
    return feeds_from_invocation(body, asking.content_type, arm.bundle.manifest, arm.signature)


def _parameters_of(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise DataError("`parameters` is no object", hint="send an object")
    return parameters


def _id_of(document: dict[str, Any]) -> str:
    request_id = document.get("id")
    if request_id is None:
        return ""
    if not isinstance(request_id, str) or len(request_id) > 256:
        raise DataError(
            f"`id` is {str(request_id)[:40]!r}, expected text of at most 256 characters",
            hint="quote the id",
        )
    return request_id
