"""Looking for the next request of a lone client."""

from __future__ import annotations

import asyncio
from time import perf_counter

from fairlead.serve.inference.busy_poll import BusyPoll

LONG_S = 3600.0


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def run(act):
    return asyncio.run(act())


def test_a_client_that_asks_without_a_pause_is_looked_for():
    async def act():
        poll = BusyPoll(LONG_S)
        seen = []
        for _ in range(4):
            poll.answered(perf_counter())
            seen.append(poll.is_looking)
        await turns(50)
        return [*seen, poll.is_looking]

    assert run(act) == [False, False, False, True, True]


def test_a_pause_ends_the_expectation():
    async def act():
        poll = BusyPoll(LONG_S)
        for _ in range(2):
            poll.answered(perf_counter())
        poll.answered(perf_counter() + 2 * LONG_S)
        return poll.is_looking

    assert not run(act)


def test_it_stops_when_nobody_asks():
    async def act():
        poll = BusyPoll(1e-3)
        now = perf_counter()
        for _ in range(20):
            poll.answered(now)  # Requests that came before the last answer: no pause at all.
        began = poll.is_looking
        while poll.is_looking:
            await asyncio.sleep(0)
        return began

    assert run(act)


def test_without_time_for_it_the_loop_always_sleeps():
    async def act():
        poll = BusyPoll(0.0)
        for _ in range(20):
            poll.answered(perf_counter())
        return poll.is_looking

    assert not run(act)
