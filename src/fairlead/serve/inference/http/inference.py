"""The hot path: requests of the Open Inference Protocol, from bytes to bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from fairlead.core.errors import UnavailableError
from fairlead.serve.inference import openinference as oip
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.http.arm_forms import ArmForms, arm_headers
from fairlead.serve.inference.http.asking import asking_of, body_of, deadline_of, priority_of
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.refusals import status_of_any
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.http.turns import Turns
from fairlead.serve.inference.openinference import InferMessage
from fairlead.serve.inference.security.callers import MAY_PROBE
from fairlead.serve.inference.service import Service

__all__ = ["CACHE_HIT", "ArmForms", "Inference", "OnPlane", "arm_headers"]

Refuse = Callable[[Exchange, Exception], None]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
OnPlane = Callable[[Dataplane, Exchange, Route], None]
"""Serves an exchange on a dataplane that was found."""


_UNPACKED_HERE = 4096
"""Longest compressed body that is unpacked in the event loop: a thread costs more than it."""

CACHE_HIT = b"x-fairlead-cache: hit\r\n"
"""Header line of an answer that was given before."""


class _Reply:
    """Sends the answer to one inference request once it is there."""

    __slots__ = ("_exchange", "_inference", "_message")

    def __init__(self, inference: Inference, exchange: Exchange, message: InferMessage) -> None:
        self._inference = inference
        self._exchange = exchange
        self._message = message

    def __call__(self, ending: Answer | Exception) -> None:
        if isinstance(ending, Exception):
            self._inference.refuse(self._exchange, ending)
            return
        frames = self._inference.frames_of(ending.arm)
        try:
            body, length = frames.write(self._message, ending.id, ending.outputs, ending.parts_ms)
        except Exception as exc:  # noqa: BLE001 (becomes the answer: a model gave what it should not)
            self._inference.refuse(self._exchange, exc)
            return
        headers = frames.json_headers
        if length is not None:
            headers = b"%binference-header-content-length: %d\r\n" % (
                frames.binary_headers,
                length,
            )
        if ending.is_cached:
            headers += CACHE_HIT
        self._exchange.answer(200, body, headers)


class Inference:
    """Answers `…/infer`."""

    def __init__(self, service: Service, max_body_bytes: int, refuse: Refuse, spawn: Spawn) -> None:
        """Prepare.

        Args:
            service: Whose models answer.
            max_body_bytes: Largest body after decompression.
            refuse: Turns an error into the answer of an exchange.
            spawn: Runs what cannot be done at once.
        """
        self._service = service
        self._repository = service.repository
        self._max_body_bytes = max_body_bytes
        self.refuse = refuse
        self._spawn = spawn
        self._frames: WeakKeyDictionary[Arm, ArmForms] = WeakKeyDictionary()
        self._last: tuple[Arm, ArmForms] | None = None
        self._turns = Turns(service.repository, self.frames_of, self._infer_alone, refuse)

    def infer(self, exchange: Exchange, route: Route) -> None:
        """Answer one request, together with others that come in the same turn; see `Handler`."""
        self._turns.add(exchange, route)

    def _infer_alone(self, exchange: Exchange, route: Route) -> None:
        try:
            self.on_plane(exchange, route, self._infer)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.refuse(exchange, exc)

    def on_plane(self, exchange: Exchange, route: Route, serve: OnPlane) -> None:
        """Serve an exchange on the dataplane of its model, after loading it where need be."""
        if len(exchange.body) > _UNPACKED_HERE and asking_of(exchange.head).coding:
            self._spawn(self._serve_unpacked(exchange, route, serve))
            return
        try:
            plane = self._repository.dataplane(route.model, route.version)
        except UnavailableError:
            self._spawn(self._serve_later(exchange, route, serve))
            return
        except Exception as exc:
            self.count_rejected(exc)
            raise
        serve(plane, exchange, route)

    def frames_of(self, arm: Arm) -> ArmForms:
        """Return what writes the answers of an arm."""
        if self._last is not None and self._last[0] is arm:
            return self._last[1]
        frames = self._frames.get(arm)
        if frames is None:
            frames = self._frames[arm] = ArmForms(arm, arm.model)
        self._last = (arm, frames)
        return frames

    def count_rejected(self, error: Exception) -> None:
        """Count a request that no arm took."""
        metrics = self._service.metrics
        if metrics is not None:
            metrics.count_rejected(status_of_any(error))

    def _infer(self, plane: Dataplane, exchange: Exchange, route: Route) -> None:
        message, request = self.understand(plane, exchange, route.version)
        call = plane.submit(request, _Reply(self, exchange, message))
        if exchange.is_awaited:
            exchange.on_gone = call.cancel
        else:
            call.cancel()

    def understand(
        self, plane: Dataplane, exchange: Exchange, version: str | None
    ) -> tuple[InferMessage, InferenceRequest]:
        """Read a request, and count it where it cannot be read.

        Raises:
            OverloadedError: The model has no room for it.
            DataError: It is none.
        """
        try:
            return self._understand(plane, exchange, version)
        except Exception as exc:
            self.count_rejected(exc)
            raise

    def _understand(
        self, plane: Dataplane, exchange: Exchange, version: str | None
    ) -> tuple[InferMessage, InferenceRequest]:
        plane.check_room()
        asking = asking_of(exchange.head)
        body = exchange.body
        if asking.coding:
            body = body_of(body, asking.coding, self._max_body_bytes)
        message = oip.decode(body, asking.header_length)
        outputs = None
        if message.outputs:
            arm = plane.choose_arm(version) if version else plane.baseline
            oip.check_requested(message, arm.signature)
            outputs = tuple(message.outputs)
        parameters = message.parameters
        return message, InferenceRequest(
            message.feeds,
            exchange.arrived,
            message.id or asking.request_id,
            version,
            asking.trace_id,
            asking.is_probe and exchange.caller in MAY_PROBE,
            deadline_of(asking, parameters, exchange.arrived),
            priority_of(parameters),
            exchange.caller,
            outputs,
            parameters,
        )

    async def _serve_unpacked(self, exchange: Exchange, route: Route, serve: OnPlane) -> None:
        """Unpack a body in a thread, so that nobody else waits for it, and serve it then."""
        asking = asking_of(exchange.head)
        loop = asyncio.get_running_loop()
        try:
            self._repository.bundle(route.model, route.version)  # Nobody unpacks for no model.
            plain = await loop.run_in_executor(
                None, body_of, exchange.body, asking.coding, self._max_body_bytes
            )
            if not exchange.is_awaited:
                return
            exchange.replace_body(plain)
            # The head may be another request's too: what was unpacked is said in one of its own.
            exchange.head = exchange.head.with_asking(asking._replace(coding=""))
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.count_rejected(exc)
            self.refuse(exchange, exc)
            return
        try:
            self.on_plane(exchange, route, serve)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.refuse(exchange, exc)

    async def _serve_later(self, exchange: Exchange, route: Route, serve: OnPlane) -> None:
        try:
            plane = await self._repository.obtain(route.model, route.version)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.count_rejected(exc)
            self.refuse(exchange, exc)
            return
        try:
            serve(plane, exchange, route)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.refuse(exchange, exc)
