"""The hot path: requests of the Open Inference Protocol, from bytes to bytes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from fairlead.core.errors import UnavailableError
from fairlead.serve.inference import openinference as oip
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.busy_poll import BusyPoll
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.http.arm_forms import ArmForms, arm_headers
from fairlead.serve.inference.http.asking import asking_of, body_of, deadline_of, priority_of
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.refusals import status_of_any
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.http.turns import Turns
from fairlead.serve.inference.long_json import LONG_BYTES
from fairlead.serve.inference.openinference import InferMessage
from fairlead.serve.inference.security.callers import MAY_PROBE
from fairlead.serve.inference.service import Service

__all__ = ["CACHE_HIT", "ArmForms", "Inference", "OnPlane", "Reading", "arm_headers"]

Refuse = Callable[[Exchange, Exception], None]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
OnPlane = Callable[[Dataplane, Exchange, Route], None]
"""Serves an exchange on a dataplane that was found."""
ServeRead = Callable[[Dataplane, Exchange, Route, Any], None]
"""Serves an exchange with what was read of it."""
Read = Callable[[Dataplane, Exchange, Route], Any]
"""Reads a request; called in whichever thread, it changes nothing but the request's own."""


_UNPACKED_HERE = 4096
"""Longest compressed body that is unpacked in the event loop: a thread costs more than it."""

_TRIES = 3

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


class Reading(NamedTuple):
    """How an endpoint reads its requests, and what it does then.

    Attributes:
        read: Returns what a request says, or raises a `DataError`.
        serve: Serves what was read.
    """

    read: Read
    serve: ServeRead


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
        self._infer_read = Reading(self.understand, self._infer)
        # One thread: they would only take the interpreter's lock from one another.
        self._readers = ThreadPoolExecutor(1, "fairlead-reader")
        self._turns = Turns(
            service.repository,
            self.frames_of,
            self._infer_alone,
            refuse,
            BusyPoll(service.busy_poll_s),
        )

    def infer(self, exchange: Exchange, route: Route) -> None:
        """Answer one request, together with others that come in the same turn; see `Handler`."""
        if len(exchange.body) > LONG_BYTES:
            self._infer_alone(exchange, route)
        else:
            self._turns.add(exchange, route)

    def _infer_alone(self, exchange: Exchange, route: Route) -> None:
        try:
            self.on_request(exchange, route, self._infer_read)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.refuse(exchange, exc)

    def on_request(self, exchange: Exchange, route: Route, reading: Reading) -> None:
        """Read a request and serve it; what takes long to read holds nobody else up."""
        if len(exchange.body) > _UNPACKED_HERE and _takes_long(exchange):
            self._spawn(self._serve_beside(exchange, route, reading))
            return

        def serve(plane: Dataplane, exchange: Exchange, route: Route) -> None:
            try:
                plane.check_room()
                found = reading.read(plane, exchange, route)
            except Exception as exc:
                self.count_rejected(exc)
                raise
            reading.serve(plane, exchange, route, found)

        self.on_plane(exchange, route, serve)

    def on_plane(self, exchange: Exchange, route: Route, serve: OnPlane) -> None:
        """Serve an exchange on the dataplane of its model, after loading it where need be."""
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

    def _infer(
        self,
        plane: Dataplane,
        exchange: Exchange,
        _: Route,
        found: tuple[InferMessage, InferenceRequest],
    ) -> None:
        message, request = found
        call = plane.submit(request, _Reply(self, exchange, message))
        if exchange.is_awaited:
            exchange.on_gone = call.cancel
        else:
            call.cancel()

    def understand(
        self, plane: Dataplane, exchange: Exchange, route: Route
    ) -> tuple[InferMessage, InferenceRequest]:
        """Read a request; see `Read`.

        Raises:
            DataError: It is none.
        """
        version = route.version
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

    async def _serve_beside(self, exchange: Exchange, route: Route, reading: Reading) -> None:
        """Unpack and read a body in threads, so that nobody else waits for it, and serve it."""
        try:
            self._repository.bundle(route.model, route.version)  # Nobody unpacks for no model.
            if asking_of(exchange.head).coding:
                await self._unpack(exchange)
            plane, found = await self._read_beside(exchange, route, reading)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            if exchange.is_awaited:
                self.count_rejected(exc)
                self.refuse(exchange, exc)
            return
        if not exchange.is_awaited:
            return
        try:
            reading.serve(plane, exchange, route, found)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self.refuse(exchange, exc)

    async def _unpack(self, exchange: Exchange) -> None:
        asking = asking_of(exchange.head)
        plain = await asyncio.get_running_loop().run_in_executor(
            None, body_of, exchange.body, asking.coding, self._max_body_bytes
        )
        if exchange.is_awaited:
            exchange.replace_body(plain)
            # The head may be another request's too: what was unpacked is said in one of its own.
            exchange.head = exchange.head.with_asking(asking._replace(coding=""))

    async def _read_beside(
        self, exchange: Exchange, route: Route, reading: Reading
    ) -> tuple[Dataplane, Any]:
        """Return a dataplane, not to be used after waiting, and what was read for it."""
        loop = asyncio.get_running_loop()
        found_for: Dataplane | None = None
        found: Any = None
        for _ in range(_TRIES):
            plane = await self._repository.obtain(route.model, route.version)
            if plane is found_for or not exchange.is_awaited:
                return plane, found
            plane.check_room()
            if _takes_long(exchange):
                found = await loop.run_in_executor(
                    self._readers, _without_collection, reading.read, plane, exchange, route
                )
                found_for = plane
            else:
                return plane, reading.read(plane, exchange, route)
        raise UnavailableError("the model changes again and again", hint="try again")

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


def _takes_long(exchange: Exchange) -> bool:
    """Say whether a body is compressed, or long and not merely the bytes of numbers."""
    asking = asking_of(exchange.head)
    if asking.coding:
        return True
    body, length = exchange.body, asking.header_length
    if len(body) <= LONG_BYTES or length is None or not (length.isascii() and length.isdigit()):
        return len(body) > LONG_BYTES
    n_json = int(length)
    return n_json > LONG_BYTES or body.find(b"BYTES", 0, n_json) >= 0


def _without_collection(read: Read, plane: Dataplane, exchange: Exchange, route: Route) -> Any:  # noqa: ANN401 (whatever it reads)
    """Read while nobody looks for rings: what is read has none, and looking holds everybody up."""
    gc.disable()
    try:
        return read(plane, exchange, route)
    finally:
        gc.enable()
