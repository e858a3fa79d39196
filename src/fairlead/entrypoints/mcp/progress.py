"""Progress of a long tool, told to the client from the thread that works."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio.from_thread

__all__ = ["Report", "ToldProgress"]

Report = Callable[[float, float | None, str | None], Coroutine[Any, Any, None]]
"""Sends one notification: how far, out of how much, and a sentence."""

_PAUSE_S = 0.2


class ToldProgress:
    """Implements the port `Progress`; call it from a worker thread of anyio only.

    Where it is told, the work also ends when the client has cancelled its call.

    The protocol wants numbers that never fall, so the units of all pieces of work add up.
    """

    def __init__(self, report: Report) -> None:
        """Tell progress to `report`."""
        self._report = report
        self._done = 0.0
        self._title = ""
        self._told_at = 0.0

    def begin(self, title: str, total: int | None = None) -> None:
        """Tell what is being done now."""
        self._title = title if total is None else f"{title} (of {total:,})"
        self._tell(self._title)

    def advance(self, units: int = 1) -> None:
        """Tell how far it is, a few times a second at most."""
        self._done += units
        anyio.from_thread.check_cancelled()
        if time.monotonic() - self._told_at >= _PAUSE_S:
            self._tell(self._title)

    def note(self, text: str) -> None:
        """Tell one sentence."""
        self._tell(text)

    def _tell(self, text: str) -> None:
        # A client that has cancelled its call ends the work here, and the next one may begin.
        anyio.from_thread.check_cancelled()
        # A step forward each time, however small, tells apart two notifications.
        self._done += 1e-6
        self._told_at = time.monotonic()
        anyio.from_thread.run(self._report, self._done, None, text)
