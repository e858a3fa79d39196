"""Work that one thread asks for and another one does: the thread that called, not a pool.

A step that runs in the thread of the caller can be interrupted with Ctrl-C, may use signals, and
keeps no process from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["AbandonedError", "CallerThread"]

T = TypeVar("T")


class AbandonedError(BaseException):
    """Ends the thread that waits for an answer nobody will give any more."""


@dataclass(slots=True)
class _Call(Generic[T]):
    function: Callable[[], T]
    answer: Future[T] = field(default_factory=Future)


class CallerThread(Generic[T]):
    """Executes the functions of the workflow's thread in the thread that waits in `serve`."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call[T] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_open = True

    def run(self, function: Callable[[], T]) -> T:
        """Have a function executed by the caller's thread and wait for what it returns."""
        call = _Call(function)
        with self._lock:
            if not self._is_open:
                raise AbandonedError
            self._calls.put(call)
        return call.answer.result()

    def finish(self) -> None:
        """Say that no more calls will come."""
        self._calls.put(None)

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Execute calls until the last one."""
        try:
            while True:
                try:
                    call = self._calls.get(timeout=1.0)
                except queue.Empty:
                    if is_over():
                        return
                    continue
                if call is None:
                    return
                _answer(call)
        finally:
            self._close()

    def _close(self) -> None:
        with self._lock:
            self._is_open = False
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            if call is not None:
                call.answer.set_exception(AbandonedError())


def _answer(call: _Call[T]) -> None:
    try:
        call.answer.set_result(call.function())
    except Exception as exc:  # noqa: BLE001 (handed on to the workflow's thread)
        call.answer.set_exception(exc)
    except BaseException:
        call.answer.set_exception(AbandonedError())
        raise
