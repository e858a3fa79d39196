"""Answers as server-sent events: one event per row, as soon as the row is there.

A model that gives its answers piece by piece sends one event per piece instead.

data: {"id":"r#0","model_name":"m","model_version":"1","outputs":[…]}

event: error
data: {"error":"…","hint":"…"}

event: end
data: {"events":2}
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fairlead.core.errors import DataError, OverloadedError
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.inference import Inference, Reading
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.http.wire import field, json_bytes, problem_bytes
from fairlead.serve.inference.openinference import InferMessage
from fairlead.serve.inference.problems import describe
from fairlead.serve.inference.streaming import is_streaming, stream_answers

__all__ = ["Events"]

_WINDOW = 64
"""Rows of one request that may be under way at the same time."""
_PAUSE_S = 0.05
_HEADERS = field("content-type", "text/event-stream; charset=utf-8") + field(
    "cache-control", "no-store"
)


class Events:
    """Answers `…/infer_stream`."""

    def __init__(
        self,
        inference: Inference,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """Prepare.

        Args:
            inference: Reads requests, finds dataplanes and refuses.
            spawn: Runs a coroutine.
        """
        self._inference = inference
        self._spawn = spawn
        self._reading = Reading(inference.understand, self._begin)

    def infer_stream(self, exchange: Exchange, route: Route) -> None:
        """Answer one request with a stream; see `Handler`."""
        self._inference.on_request(exchange, route, self._reading)

    def _begin(
        self,
        plane: Dataplane,
        exchange: Exchange,
        _: Route,
        found: tuple[InferMessage, InferenceRequest],
    ) -> None:
        message, request = found
        if message.is_binary or any(message.outputs.values()):
            raise DataError("events are text and hold no binary tensors", hint="ask for JSON")
        task = self._spawn(self._stream(plane, exchange, message, request))
        exchange.on_gone = task.cancel

    async def _stream(
        self, plane: Dataplane, exchange: Exchange, message: InferMessage, request: InferenceRequest
    ) -> None:
        is_in_pieces = any(is_streaming(arm) for arm in plane.arms.values())
        source = stream_answers(plane, request) if is_in_pieces else _by_row(plane, request)
        n_sent = 0
        try:
            async with aclosing(_begun(exchange, source)) as answers:
                async for answer in answers:
                    n_sent += 1
                    if not exchange.push(self._event(message, answer, is_in_pieces)):
                        await exchange.drained()
        except ConnectionResetError:
            return
        except Exception as exc:  # noqa: BLE001 (becomes the answer, or its last event)
            if not n_sent:
                self._inference.refuse(exchange, exc)
                return
            exchange.push(b"event: error\ndata: %b\n\n" % problem_bytes(*describe(exc)))
        else:
            exchange.push(b"event: end\ndata: %b\n\n" % json_bytes({"events": n_sent}))
        exchange.finish()

    def _event(self, message: InferMessage, answer: Answer, is_piece: bool) -> bytes:
        if is_piece:
            # A piece has the outputs that it adds to.
            message = message._replace(outputs=dict.fromkeys(answer.outputs, False))
        frames = self._inference.frames_of(answer.arm)
        return b"data: %b\n\n" % frames.write(message, answer.id, answer.outputs)[0]


async def _begun(
    exchange: Exchange, source: AsyncGenerator[Answer, None]
) -> AsyncGenerator[Answer, None]:
    """Begin the stream when its first answer is there, or when there is none and all went well."""
    is_begun = False
    async with aclosing(source) as answers:
        async for answer in answers:
            if not is_begun:
                exchange.begin(200, _HEADERS)
            is_begun = True
            yield answer
    if not is_begun:
        exchange.begin(200, _HEADERS)


async def _by_row(plane: Dataplane, request: InferenceRequest) -> AsyncGenerator[Answer, None]:
    """Answer the rows of a request one by one, in their order; some are under way at once."""
    n_rows = min((len(array) for array in request.feeds.values() if array.ndim), default=0)
    is_uneven = any(array.ndim == 0 or len(array) != n_rows for array in request.feeds.values())
    if is_uneven or not n_rows:
        yield await plane.infer(request)  # which says what is wrong with it
        return
    flying: deque[asyncio.Task[Answer]] = deque()
    try:
        for row in range(n_rows):
            one = _row_of(request, row, n_rows)
            answering = plane.infer(one) if row == 0 else _answered_later(plane, one)
            flying.append(asyncio.ensure_future(answering))
            if len(flying) >= _WINDOW:
                yield await flying.popleft()
        while flying:
            yield await flying.popleft()
    finally:
        for task in flying:
            task.cancel()


async def _answered_later(plane: Dataplane, request: InferenceRequest) -> Answer:
    """Answer a row of a stream that was begun: while there is no room it waits, until its time."""
    while True:
        try:
            plane.check_room(request.priority)
            return await plane.infer(request)
        except OverloadedError:
            await asyncio.sleep(_PAUSE_S)
            if plane.deadline_of(request) <= time.perf_counter():
                raise


def _row_of(request: InferenceRequest, row: int, n_rows: int) -> InferenceRequest:
    feeds = {name: array[row : row + 1] for name, array in request.feeds.items()}
    request_id = f"{request.id}#{row}" if request.id and n_rows > 1 else request.id
    return request._replace(feeds=feeds, id=request_id)
