"""Answers piece by piece, from models that give them so; other models answer in one piece."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

from fairlead.core.errors import OverloadedError
from fairlead.core.ports import Array, StreamingRunner
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.problems import CLIENT_GONE, describe, status_of
from fairlead.serve.inference.served import ServedRequest

__all__ = ["is_streaming", "stream_answers"]

_MAX_STREAMS = 64
"""Streams of one arm at the same time; each has a thread while it runs."""
_AHEAD = 8
"""Pieces that a model may be ahead of its reader."""

_threads: WeakKeyDictionary[Arm, ThreadPoolExecutor] = WeakKeyDictionary()


def is_streaming(arm: Arm) -> bool:
    """Return whether the model of an arm gives its answers piece by piece."""
    return isinstance(arm.runner, StreamingRunner) and arm.runner.is_streaming


async def stream_answers(plane: Dataplane, request: InferenceRequest) -> AsyncGenerator[Answer]:
    """Answer one request in as many pieces as the model gives.

    Args:
        plane: Whose model answers.
        request: What is asked.

    Yields:
        Pieces with the outputs that they add to; all carry the id of the request.

    Raises:
        NotFoundError: The version does not exist.
        SignatureError: The inputs do not fit.
        OverloadedError: Too many requests wait, or too many streams run.
        TimeoutError: It took too long.
        ModelError: The model failed, at the beginning or in the middle.
    """
    if not any(is_streaming(arm) for arm in plane.arms.values()):
        yield await plane.infer(request)
        return
    arm = plane.choose_arm(request.version)
    if not is_streaming(arm):
        yield await plane.infer(request._replace(version=arm.version))
        return
    stream = _Stream(plane, arm, request)
    async with contextlib.aclosing(stream.answers()) as answers:
        async for answer in answers:
            yield answer


class _Stream:
    """One answer on its way."""

    def __init__(self, plane: Dataplane, arm: Arm, request: InferenceRequest) -> None:
        self._plane = plane
        self._arm = arm
        self._request = request
        self._id = request.id or plane.new_id()
        self._deadline = plane.deadline_of(request)
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[dict[str, Array] | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        self._is_unwanted = False
        self._pieces: list[dict[str, Array]] = []
        self._started = time.perf_counter()

    async def answers(self) -> AsyncGenerator[Answer]:
        feeds: dict[str, Array] | None = None
        n_rows = 0
        self._plane.n_streams += 1
        work: asyncio.Future[None] | None = None
        try:
            feeds, n_rows = self._arm.intake.check(self._request.feeds)
            work = self._loop.run_in_executor(self._executor(), self._run, feeds)
            while (piece := await self._next()) is not None:
                yield Answer(self._id, self._arm, self._chosen(piece))
        except (GeneratorExit, asyncio.CancelledError):
            self._note(feeds, n_rows, CLIENT_GONE, "the client went away")
            raise
        except Exception as exc:
            self._note(feeds, n_rows, status_of(exc), describe(exc)[0])
            raise
        else:
            self._note(feeds, n_rows, 200, "")
        finally:
            self._is_unwanted = True
            self._room.release()
            if work is None:
                self._plane.n_streams -= 1
            else:
                work.add_done_callback(self._leave)

    def _leave(self, _: asyncio.Future[None]) -> None:
        self._plane.n_streams -= 1

    def _executor(self) -> ThreadPoolExecutor:
        if self._plane.n_streams > _MAX_STREAMS:
            raise OverloadedError(
                f"`{self._arm.model}` already streams {_MAX_STREAMS} answers",
                hint="send it again in 1 s, or add replicas",
            )
        found = _threads.get(self._arm)
        if found is None:
            found = _threads[self._arm] = ThreadPoolExecutor(_MAX_STREAMS, "fairlead-stream")
        return found

    async def _next(self) -> dict[str, Array] | None:
        left_s = self._deadline - time.perf_counter()
        piece = await asyncio.wait_for(self._arrived.get(), max(0.0, left_s))
        if isinstance(piece, BaseException):
            raise piece
        if piece is not None:
            self._room.release()
            self._pieces.append(piece)
        return piece

    def _chosen(self, piece: dict[str, Array]) -> dict[str, Array]:
        wanted = self._request.outputs
        if wanted is None:
            return piece
        return {name: array for name, array in piece.items() if name in wanted}

    def _run(self, feeds: dict[str, Array]) -> None:
        """Execute the model, in a thread of its own."""
        runner: Any = self._arm.runner
        ending: BaseException | None = None
        try:
            pieces: Iterator[dict[str, Array]] = runner.stream(feeds)
            with contextlib.closing(_closable(pieces)):
                for piece in pieces:
                    self._room.acquire()
                    if self._is_unwanted:
                        return
                    self._tell(piece)
        except Exception as exc:  # noqa: BLE001 (raised to the reader)
            ending = exc
        self._tell(ending)

    def _tell(self, piece: dict[str, Array] | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may have ended
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)

    def _note(self, feeds: dict[str, Array] | None, n_rows: int, status: int, error: str) -> None:
        from fairlead.backends.python_runner import join_pieces

        request, now = self._request, time.perf_counter()
        outputs = join_pieces(self._pieces) if status == 200 and self._pieces else None
        self._plane.remember(
            ServedRequest(
                id=self._id,
                arm=self._arm,
                status=status,
                feeds=feeds,
                outputs=outputs,
                n_rows=n_rows,
                queue_ms=0.0,
                run_ms=(now - self._started) * 1e3,
                total_ms=(now - request.arrived) * 1e3,
                batch_rows=n_rows,
                at=time.time(),
                trace_id=request.trace_id,
                error=error,
                is_probe=request.is_probe,
                caller=request.caller,
            )
        )


class _Nothing:
    def close(self) -> None:
        """Do nothing."""


def _closable(pieces: Iterator[Any]) -> Any:  # noqa: ANN401 (a generator, or any iterator)
    return pieces if hasattr(pieces, "close") else _Nothing()
