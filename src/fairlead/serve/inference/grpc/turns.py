"""Calls that came in one turn of the event loop, read, run, answered and accounted for together.

As with requests over HTTP, only calls that differ in nothing but their id and their numbers go this
way; every other one, and each one that something is wrong with, goes through the queue, with the
same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from fairlead.core.errors import FairleadError
from fairlead.serve.inference.busy_poll import BusyPoll
from fairlead.serve.inference.dataplane import Joined
from fairlead.serve.inference.grpc.call import Call
from fairlead.serve.inference.grpc.known_messages import KnownMessage, KnownMessages
from fairlead.serve.inference.grpc.messages import AnswerMessages
from fairlead.serve.inference.served import ServedTogether

if TYPE_CHECKING:
    from fairlead.serve.inference.arms import Arm
    from fairlead.serve.inference.dataplane import Dataplane
    from fairlead.serve.inference.repository import Repository

__all__ = ["Turns"]

_MOST_TOGETHER = 256
"""Calls of one turn that are served at once; those behind them go through the queue."""

_Found = tuple[Call, bytes, KnownMessage, str, bytes]
"""A call, its message, what that is like, its id and its raw contents."""


class Turns:
    """Gathers calls until the turn of the event loop ends."""

    def __init__(
        self,
        repository: Repository,
        known: KnownMessages,
        answers_of: Callable[[Arm], AnswerMessages],
        serve_alone: Callable[[Call, bytes], None],
        fail: Callable[[Call, Exception], None],
        busy_poll: BusyPoll,
    ) -> None:
        """Prepare.

        Args:
            repository: Finds dataplanes.
            known: Knows what messages are like.
            answers_of: Returns what writes the answers of an arm.
            serve_alone: Serves a call through the queue; never raises.
            fail: Ends a call with an error.
            busy_poll: Hears of answers to a lone client.
        """
        self._repository = repository
        self._known = known
        self._answers_of = answers_of
        self._serve_alone = serve_alone
        self._fail = fail
        self._busy_poll = busy_poll
        self._gathered: list[tuple[Call, bytes]] = []

    def add(self, call: Call, raw: bytes) -> None:
        """Serve a call when the turn ends; the only client's connection asks for it sooner."""
        if not self._gathered and not call.is_alone:
            asyncio.get_running_loop().call_soon(self.serve)
        self._gathered.append((call, raw))

    def serve_lone(self) -> None:
        """Serve what came from the only client there is."""
        arrived, gathered = perf_counter(), self._gathered
        self.serve()
        if gathered and all(call.is_over for call, _ in gathered):
            self._busy_poll.answered(arrived)

    def serve(self) -> None:
        """Serve what was gathered."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        outlets = {call.outlet for call, _ in gathered}
        for outlet in outlets:
            outlet.hold()
        alike: dict[int, list[_Found]] = {}
        for call, raw in gathered:
            if call.is_over:
                continue
            found = self._known.find(raw)
            if found is None:
                self._serve_alone(call, raw)
            else:
                alike.setdefault(id(found[0]), []).append((call, raw, *found))
        for group in alike.values():
            self._serve_alike(group)
        for outlet in outlets:
            outlet.flush()

    def _serve_alike(self, group: list[_Found]) -> None:
        known = group[0][2]
        left = group
        try:
            plane = self._repository.dataplane(known.model, known.version)
            arm = plane.plain_arm(known.version)
        except FairleadError:
            arm = None  # It is told in its turn.
        if arm is not None:
            if known.arm() is arm:
                left = self._serve_plain(group, plane, arm)
            else:
                self._known.forget(known)
        for call, raw, *_ in left:
            self._serve_alone(call, raw)

    def _serve_plain(self, group: list[_Found], plane: Dataplane, arm: Arm) -> list[_Found]:
        """Answer what can be answered together; return the other calls."""
        limits = arm.queue.limits
        known = group[0][2]
        most = min(_MOST_TOGETHER, limits.max_pending, len(group))
        size = arm.queue.batch_rows() // known.n_rows
        if not size:
            return group
        left = group[most:]
        for start in range(0, most, size):
            some = group[start : min(start + size, most)]
            now = perf_counter()
            late = [each for each in some if each[0].is_late(now)]
            if late:
                some = [each for each in some if not each[0].is_late(now)]
                left += late
            served = plane.answer_now(arm, _joined(some, known, arm)) if some else None
            if served is None:
                left += some
            else:
                plane.remember_together(served)
                self._answer(some, served, known.outputs)
        return left

    def _answer(
        self, some: list[_Found], served: ServedTogether, outputs: tuple[str, ...] | None
    ) -> None:
        try:
            messages = self._answers_of(served.arm).write_all(served, outputs)
        except Exception as exc:  # noqa: BLE001 (becomes the answer: a model gave what it should not)
            for call, *_ in some:
                self._fail(call, exc)
            return
        for (call, *_), message in zip(some, messages, strict=True):
            call.respond(message)


def _joined(some: list[_Found], known: KnownMessage, arm: Arm) -> Joined:
    spec = arm.signature.inputs[0]
    raws = [raw for *_, raw in some]
    count = len(some)
    rows = known.n_rows * count
    whole = np.ndarray((rows, *spec.shape[1:]), spec.numpy_dtype, b"".join(raws))
    return Joined(
        [each[3] for each in some],
        [each[0].arrived for each in some],
        [known.n_rows] * count,
        [""] * count,
        [each[0].caller for each in some],
        {spec.name: whole},
    )
