"""Several workers behind one port: a supervisor that starts, watches, replaces and ends them.

The supervisor binds the sockets and holds no model. A worker is a fresh interpreter that inherits
the listening socket, one end of a socket pair and the file of the rate limits; its plan comes
through its standard input, whose end tells it that the supervisor is gone. Nothing secret stands
in arguments or in the environment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fairlead.core.errors import EndpointError, FairleadError
from fairlead.serve.inference.accepting import OpenCounts, new_open_counts
from fairlead.serve.inference.hub import Hub, Member
from fairlead.serve.inference.merging import MergedMetrics, MergedOutcomes
from fairlead.serve.inference.model_statistics import MergedStatistics
from fairlead.serve.inference.outcome_log import OutcomeLog, new_outcome_file
from fairlead.serve.inference.security.rate_limits import new_shared_file
from fairlead.serve.inference.status import merged_status

__all__ = ["Supervision", "Supervisor"]

_log = logging.getLogger(__name__)
_TICK_S = 0.25
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 15.0
_SETTLED_S = 30.0
_MAX_FAILURES = 5
_GRACE_S = 5.0
_TAKEN = 20_000


@dataclass(frozen=True)
class Supervision:
    """What a supervisor has to do.

    Attributes:
        n_workers: How many workers there shall be.
        plan: JSON document that a worker reads; `plan.py` knows what stands in it.
        listeners: Name → socket that every worker inherits.
        hang_timeout_s: A worker that is silent for longer is replaced, in seconds.
        drain_timeout_s: How long requests in flight may take when the service stops, in seconds.
        on_ready: Called with what the first worker said of itself, once all are warm.
    """

    n_workers: int
    plan: dict[str, Any] = field(repr=False)
    listeners: dict[str, socket.socket]
    hang_timeout_s: float
    drain_timeout_s: float
    on_ready: Callable[[dict[str, Any]], None]


@dataclass
class _Place:
    """One of the places that workers take, one after the other.

    Attributes:
        number: From 0.
        process: The worker that has it now.
        member: The same, as the hub knows it.
        since: When it was started, in seconds of `time.monotonic`.
        failures: How often in a row a worker ended soon after its start.
        restarts: How often a worker of this place was replaced.
        outcomes: File of what became of the requests of the worker that has it now.
    """

    number: int
    process: subprocess.Popen[bytes] | None = None
    member: Member | None = None
    since: float = 0.0
    failures: int = 0
    restarts: int = 0
    outcomes: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether a process has the place."""
        return self.process is not None and self.process.poll() is None

    def described(self) -> dict[str, Any]:
        """Return who has the place now, and how often that changed."""
        pid = self.process.pid if self.process is not None and self.is_alive else None
        return {"worker": self.number, "pid": pid, "restarts": self.restarts}

    def forget_outcomes(self) -> None:
        """Free the memory of the outcomes."""
        if self.outcomes is not None:
            os.close(self.outcomes)
            self.outcomes = None

    def signal(self, number: int) -> None:
        """Send a signal to the process, where there is one."""
        if self.process is not None and self.is_alive:
            self.process.send_signal(number)


class Supervisor:
    """Keeps the workers of one service alive; lives in one event loop."""

    def __init__(self, work: Supervision) -> None:
        """Prepare; `run` starts the workers."""
        self._work = work
        self._hub = Hub(self._replace)
        self._places = [_Place(number) for number in range(work.n_workers)]
        self._answers = _ServiceAnswers(self._hub, self._places)
        self._limits = new_shared_file()
        self._counts_file = new_open_counts()
        self._counts = [OpenCounts(self._counts_file, 0, listener=which) for which in (0, 1)]
        self._is_ready = False
        self._draining = asyncio.Event()
        self._failure: FairleadError | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def drain(self) -> None:
        """Let every worker answer what it has, and end; call it in the loop's thread."""
        self._draining.set()

    async def run(self) -> None:
        """Start the workers and keep them alive until `drain`.

        Raises:
            FairleadError: A worker refused to start, or none can be kept alive.
        """
        try:
            for place in self._places:
                await self._start(place)
            watching = asyncio.create_task(self._watch())
            told = asyncio.create_task(self._draining.wait())
            await asyncio.wait({watching, told}, return_when=asyncio.FIRST_COMPLETED)
            self._draining.set()
            await self._end_all()
            if watching.done():
                watching.result()  # It never ends by itself but with an error.
            watching.cancel()
        finally:
            for place in self._places:
                place.signal(signal.SIGKILL)
                place.forget_outcomes()
            os.close(self._limits)
            os.close(self._counts_file)
        if self._failure is not None:
            raise self._failure

    async def _start(self, place: _Place) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        listeners = {name: item.fileno() for name, item in self._work.listeners.items()}
        place.outcomes = new_outcome_file()
        document = self._work.plan | {
            "worker": place.number,
            "is_replacement": place.restarts > 0,
            "n_workers": self._work.n_workers,
            "bus": far.fileno(),
            "limits": self._limits,
            "counts": self._counts_file,
            "outcomes": place.outcomes,
            "listeners": listeners,
        }
        with far:
            process = subprocess.Popen(
                [sys.executable, "-m", "fairlead.serve.inference.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(
                    *listeners.values(), far.fileno(), self._limits, self._counts_file,
                    place.outcomes,
                ),
            )  # fmt: skip
        place.process, place.since = process, time.monotonic()
        place.member = await self._hub.welcome(place.number, near)
        minder = threading.Thread(
            target=_mind,
            args=(process, json.dumps(document).encode() + b"\n", self._told_of_end(place)),
            name=f"fairlead-worker-{place.number}",
            daemon=True,
        )
        minder.start()

    def _told_of_end(self, place: _Place) -> Callable[[int], None]:
        loop = asyncio.get_running_loop()

        def tell(code: int) -> None:
            with suppress(RuntimeError):  # The supervisor may have ended before.
                loop.call_soon_threadsafe(self._spawn, self._after_end(place, code))

        return tell

    async def _after_end(self, place: _Place, code: int) -> None:
        """Replace a worker that ended by itself, after a pause that grows while it fails."""
        member, lived_s = place.member, time.monotonic() - place.since
        await asyncio.sleep(0)  # Its last words may wait in the socket.
        if member is not None:
            self._hub.leave(member)
        await self._answers.end(place)
        place.forget_outcomes()
        for counts in self._counts:
            counts.remove(place.number)
        if self._draining.is_set():
            return
        if not self._is_ready:
            self._fail(_refusal(member, code))
            return
        place.failures = 0 if lived_s > _SETTLED_S else place.failures + 1
        if place.failures > _MAX_FAILURES and not self._hub.members:
            self._fail(_refusal(member, code))
            return
        place.restarts += 1
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** max(0, place.failures - 1))
        why = "" if member is None or member.failure is None else f" ({member.failure})"
        _log.error("worker %d %s%s; another starts in %g s", place.number, _how(code), why, pause_s)
        await asyncio.sleep(pause_s)
        if not self._draining.is_set():
            await self._start(place)

    def _fail(self, error: FairleadError) -> None:
        if self._failure is None:
            self._failure = error
        self._draining.set()

    def _replace(self, member: Member) -> None:
        for place in self._places:
            if place.member is member:
                place.signal(signal.SIGKILL)

    async def _watch(self) -> None:
        """Say when all are warm; end workers whose event loop stands still."""
        limit_s = self._work.hang_timeout_s
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            # Where this process itself was held up, silence means nothing.
            was_held_up = now - last > limit_s / 2
            last = now
            for member in self._hub.members:
                if was_held_up:
                    member.last_beat = now
                elif now - member.last_beat > limit_s:
                    _log.error("worker %d has been silent for %g s", member.number, limit_s)
                    self._replace(member)
            if not self._is_ready and len(self._hub.members) == len(self._places):
                self._is_ready = True
                self._work.on_ready(self._hub.members[0].joined)

    async def _end_all(self) -> None:
        """Close the port here, and let the workers drain."""
        for listener in self._work.listeners.values():
            listener.close()
        for place in self._places:
            place.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._work.drain_timeout_s + _GRACE_S
        while any(place.is_alive for place in self._places) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        late = [place.number for place in self._places if place.is_alive]
        if late:
            _log.error("workers %s did not end in time and are killed", late)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _ServiceAnswers:
    """Answers of the whole service, made of what the workers say."""

    def __init__(self, hub: Hub, places: Sequence[_Place]) -> None:
        self._hub = hub
        self._places = places
        self._metrics = MergedMetrics()
        self._outcomes = MergedOutcomes()
        self._statistics = MergedStatistics()
        self._taking = asyncio.Lock()
        hub.on("metrics.read", self._read_metrics)
        hub.on("outcomes.read", self._read_outcomes)
        hub.on("statistics.read", self._read_statistics)
        hub.on("status.read", self._read_status)

    async def end(self, place: _Place) -> None:
        """Keep what a worker that ended had told, and the outcomes that it had written down."""
        self._metrics.end(place.number)
        self._statistics.end(place.number)
        async with self._taking:
            cursor = self._outcomes.cursor(place.number)
            if place.outcomes is not None:
                page = await asyncio.to_thread(_left_behind, place.outcomes, cursor)
                self._outcomes.take({place.number: page})
            self._outcomes.end(place.number)

    async def _read_metrics(self, _: dict[str, Any]) -> dict[str, Any]:
        found = await self._hub.each("metrics.read", lambda _: {})
        n_restarts = sum(place.restarts for place in self._places)
        gauges = [
            ("fairlead_workers", "gauge", "Workers that take requests.", len(self._hub.members)),
            ("fairlead_worker_restarts_total", "counter", "Workers replaced.", n_restarts),
        ]
        texts = {place: str(answer["text"]) for place, answer in found.items()}
        return {"text": self._metrics.render(texts, gauges)}

    async def _read_status(self, _: dict[str, Any]) -> dict[str, Any]:
        found = await self._hub.each("status.read", lambda _: {})
        return merged_status(found, [place.described() for place in self._places])

    async def _read_statistics(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._statistics.put(await self._hub.each("statistics.read", lambda _: body))

    async def _read_outcomes(self, body: dict[str, Any]) -> dict[str, Any]:
        # Two readers at once must not number one outcome twice.
        async with self._taking:
            pages = await self._hub.each("outcomes.read", self._unread)
            self._outcomes.take(pages)
            return self._outcomes.read(body["after"], body["limit"])

    def _unread(self, member: Member) -> dict[str, Any]:
        return {"after": self._outcomes.cursor(member.number), "limit": _TAKEN}


def _left_behind(outcomes: int, after: int) -> dict[str, Any]:
    """Return the outcomes of a worker that ended which nobody asked it for."""
    return OutcomeLog(outcomes).read(after, sys.maxsize)


def _mind(process: subprocess.Popen[bytes], plan: bytes, tell: Callable[[int], None]) -> None:
    """Hand a worker its plan, keep its standard input open, and wait for its end."""
    pipe = process.stdin
    if pipe is not None:
        with suppress(BrokenPipeError):
            pipe.write(plan)
            pipe.flush()
    code = process.wait()
    if pipe is not None:
        with suppress(BrokenPipeError):
            pipe.close()
    tell(code)


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _refusal(member: Member | None, code: int) -> FairleadError:
    if member is not None and member.failure is not None:
        return member.failure
    return EndpointError(
        f"a worker {_how(code)} before it was ready", hint="what it said stands above or in the log"
    )
