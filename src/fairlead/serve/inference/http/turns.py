"""Requests that came in one turn of the event loop, read, run, written and accounted for together.

What a request costs beside its numbers is then paid once for all of them. Only requests that
differ in nothing but their tensors go this way; every other one, and each one that something is
wrong with, goes its own way through the queue, with the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fairlead.core.errors import FairleadError
from fairlead.serve.inference.busy_poll import BusyPoll
from fairlead.serve.inference.dataplane import Joined
from fairlead.serve.inference.http.arm_forms import ArmForms
from fairlead.serve.inference.http.asking import asking_of
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.served import ServedTogether

if TYPE_CHECKING:
    from fairlead.serve.inference.arms import Arm
    from fairlead.serve.inference.dataplane import Dataplane
    from fairlead.serve.inference.repository import Repository

__all__ = ["Turns"]

_MOST_TOGETHER = 256
"""Requests of one turn that are served at once; those behind them go through the queue."""


class Turns:
    """Gathers requests until the turn of the event loop ends."""

    def __init__(
        self,
        repository: Repository,
        forms_of: Callable[[Arm], ArmForms],
        serve_alone: Callable[[Exchange, Route], None],
        refuse: Callable[[Exchange, Exception], None],
        busy_poll: BusyPoll,
    ) -> None:
        """Prepare.

        Args:
            repository: Finds dataplanes.
            forms_of: Returns what reads and writes for an arm.
            serve_alone: Serves a request through the queue; never raises.
            refuse: Turns an error into the answer of an exchange.
            busy_poll: Hears of answers to a lone client.
        """
        self._repository = repository
        self._forms_of = forms_of
        self._serve_alone = serve_alone
        self._refuse = refuse
        self._busy_poll = busy_poll
        self._gathered: list[tuple[Exchange, Route]] = []

    def add(self, exchange: Exchange, route: Route) -> None:
        """Serve a request when the turn ends, or at once where no other client can join it."""
        if not self._gathered and exchange.is_alone:
            self._serve_route([exchange], route)
            if exchange.is_answered:
                self._busy_poll.answered(exchange.arrived)
            return
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._serve)
        self._gathered.append((exchange, route))

    def _serve(self) -> None:
        gathered, self._gathered = self._gathered, []
        route = gathered[0][1]
        if len({id(other) for _, other in gathered}) == 1:
            self._serve_route([exchange for exchange, _ in gathered], route)
            return
        routes: dict[int, tuple[Route, list[Exchange]]] = {}
        for exchange, route in gathered:
            routes.setdefault(id(route), (route, []))[1].append(exchange)
        for route, exchanges in routes.values():
            self._serve_route(exchanges, route)

    def _serve_route(self, exchanges: list[Exchange], route: Route) -> None:
        left = exchanges
        try:
            plane = self._repository.dataplane(route.model, route.version)
            arm = plane.plain_arm(route.version)
        except FairleadError:
            arm = None  # It is told in its turn.
        if arm is not None:
            forms = self._forms_of(arm)
            if forms.rows.is_of_use:
                left = self._serve_plain(exchanges, plane, arm, forms)
        for exchange in left:
            self._serve_alone(exchange, route)

    def _serve_plain(
        self, exchanges: list[Exchange], plane: Dataplane, arm: Arm, forms: ArmForms
    ) -> list[Exchange]:
        """Answer what can be answered together; return the other exchanges."""
        limits = arm.queue.limits
        most = min(_MOST_TOGETHER, limits.max_pending, len(exchanges))
        size = arm.queue.batch_rows()
        left = exchanges[most:]
        for start in range(0, most, size):
            some, asked, others = _read(exchanges[start : min(start + size, most)], size, forms)
            left += others
            if not some:
                continue
            served = plane.answer_now(arm, asked)
            if served is None:
                left += some
            else:
                plane.remember_together(served)
                self._write(some, served, forms)
        return left

    def _write(self, exchanges: list[Exchange], served: ServedTogether, forms: ArmForms) -> None:
        try:
            bodies = forms.write_all(served)
        except Exception as exc:  # noqa: BLE001 (becomes the answer: a model gave what it should not)
            for exchange in exchanges:
                self._refuse(exchange, exc)
            return
        headers = forms.json_headers
        for exchange, body in zip(exchanges, bodies, strict=True):
            exchange.answer(200, body, headers)


def _read(
    exchanges: list[Exchange], most_rows: int, forms: ArmForms
) -> tuple[list[Exchange], Joined, list[Exchange]]:
    """Return the exchanges that ask for rows and for nothing else, what they ask, and the others.

    A client that is gone already is among the others.
    """
    taken: list[Exchange] = []
    others: list[Exchange] = []
    ids, n_rows, raws, traces = [], [], [], []
    read = forms.rows.read
    room = most_rows
    for exchange in exchanges:
        asking = asking_of(exchange.head)
        found = read(exchange.body) if asking.is_usual and exchange.is_awaited else None
        if found is None or found[1] > room:
            others.append(exchange)
            continue
        request_id, rows, raw = found
        room -= rows
        taken.append(exchange)
        ids.append(request_id or asking.request_id)
        n_rows.append(rows)
        raws.append(raw)
        traces.append(asking.trace_id)
    arrived = [exchange.arrived for exchange in taken]
    callers = [exchange.caller for exchange in taken]
    feeds = forms.rows.join(raws, most_rows - room) if taken else {}
    return taken, Joined(ids, arrived, n_rows, traces, callers, feeds), others
