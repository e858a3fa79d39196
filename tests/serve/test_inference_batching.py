"""The queue in front of a model, in a real event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import numpy as np
import pytest

from fairlead.core.errors import ModelError, OverloadedError
from fairlead.serve.inference.batching import BatchQueue, QueueLimits
from fairlead.serve.inference.methods import METHODS
from fairlead.serve.inference.methods.queue import Waiting


class Doubler:
    """Doubles its rows, remembers the batches, fails on negative numbers."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[int] = []
        self.gate = gate

    def __call__(self, feeds):
        if self.gate is not None:
            assert self.gate.wait(10)
        x = feeds["x"]
        self.batches.append(len(x))
        if (x < 0).any():
            raise ModelError("negative", hint="be positive")
        return {"y": x * 2}


def queue_of(run, *, method="adaptive-batching", joinable=True, **limits):
    return BatchQueue(
        run,
        take=METHODS[method],
        is_joinable=joinable,
        limits=QueueLimits(**{"max_batch_rows": 8, "inline_s": 0.0, **limits}),
        name="baseline",
    )


def rows(*values):
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


handles = {}


def submit(queue, feeds, **options):
    """Queue a request; the future is its ending."""
    future = asyncio.get_running_loop().create_future()

    def done(ending):
        if isinstance(ending, Exception):
            future.set_exception(ending)
        else:
            future.set_result(ending)

    handles[future] = queue.submit(feeds, len(feeds["x"]), done, **options)
    return future


async def ask(queue, *requests):
    futures = [submit(queue, feeds) for feeds in requests]
    found = await asyncio.gather(*futures, return_exceptions=True)
    return [
        item if isinstance(item, Exception) else item.outputs["y"].ravel().tolist()
        for item in found
    ]


def run(queue, *requests):
    async def live():
        try:
            return await ask(queue, *requests)
        finally:
            queue.close()

    return asyncio.run(live())


def test_requests_of_one_tick_run_together_and_get_their_own_rows():
    model = Doubler()
    found = run(queue_of(model), rows(1), rows(2, 3), rows(4))
    assert found == [[2], [4, 6], [8]]
    assert model.batches == [4]


def test_a_batch_never_grows_beyond_its_limit():
    model = Doubler()
    found = run(queue_of(model), *[rows(i, i) for i in range(10)])
    assert found == [[2 * i, 2 * i] for i in range(10)]
    assert max(model.batches) <= 8
    assert sum(model.batches) == 20


def test_requests_of_other_shapes_keep_their_place():
    model = Doubler()
    wide = {"x": np.ones((1, 2), np.float32)}
    found = run(queue_of(model), rows(1), wide, rows(3))
    assert found == [[2], [2, 2], [6]]
    assert sorted(model.batches) == [1, 2]


def test_a_bad_request_fails_alone():
    found = run(queue_of(Doubler()), rows(1), rows(-1), rows(3))
    assert found[0] == [2]
    assert isinstance(found[1], ModelError)
    assert found[2] == [6]


@pytest.mark.parametrize("options", [{"method": "request-at-a-time"}, {"joinable": False}])
def test_rows_that_must_not_meet_do_not(options):
    model = Doubler()
    assert run(queue_of(model, **options), rows(1), rows(2), rows(3)) == [[2], [4], [6]]
    assert model.batches == [1, 1, 1]


def test_short_runs_stay_in_the_loops_thread():
    threads = []

    def model(feeds):
        threads.append(threading.current_thread() is threading.main_thread())
        return {"y": feeds["x"]}

    async def live(queue):
        for _ in range(3):
            await ask(queue, rows(1))
        queue.close()

    asyncio.run(live(queue_of(model, inline_s=10.0)))
    # The first run is measured in a thread, for nobody knows yet how long it takes.
    assert threads == [False, True, True]


def test_a_full_queue_refuses_and_recovers():
    gate = threading.Event()

    async def live():
        queue = queue_of(Doubler(gate), max_pending=2)
        held = [submit(queue, rows(i)) for i in (1, 2)]
        with pytest.raises(OverloadedError, match="holds 2 requests"):
            submit(queue, rows(3))
        gate.set()
        await asyncio.gather(*held)
        assert await ask(queue, rows(3)) == [[6]]
        assert queue.n_pending == 0
        queue.close()

    asyncio.run(live())


def test_who_no_longer_waits_is_not_run():
    gate = threading.Event()
    model = Doubler(gate)

    async def live():
        queue = queue_of(model, max_batch_rows=1)
        first = submit(queue, rows(1))
        second = submit(queue, rows(2))
        await asyncio.sleep(0)
        queue.cancel(handles.pop(second))
        gate.set()
        await first
        assert await ask(queue, rows(3)) == [[6]]
        queue.close()

    asyncio.run(live())
    assert model.batches == [1, 1]


def test_company_is_awaited_only_by_those_who_have_some():
    model = Doubler()

    async def live():
        queue = queue_of(model, max_wait_s=600, max_batch_rows=3)
        assert await ask(queue, rows(1)) == [[2]]
        two = asyncio.ensure_future(ask(queue, rows(1), rows(2)))
        await asyncio.sleep(0)
        assert await ask(queue, rows(3)) == [[6]]
        assert await two == [[2], [4]]
        queue.close()

    asyncio.run(live())
    assert model.batches == [1, 3]


def test_taking_leaves_the_rest_in_order():
    def item(n, key=()):
        return Waiting({}, n, key, 0.0, None)

    first, big, other, small = item(2), item(7), item(1, ((2,),)), item(1)
    waiting = deque([first, big, other, small])
    assert METHODS["adaptive-batching"](waiting, 8) == [first, small]
    assert list(waiting) == [big, other]


def test_one_interrupted_run_does_not_make_the_next_ones_slow():
    threads = []

    class Interrupted(Doubler):
        def __call__(self, feeds):
            threads.append(threading.current_thread() is threading.main_thread())
            if len(threads) == 1:
                threading.Event().wait(0.3)
            return super().__call__(feeds)

    async def live(queue):
        for value in range(6):
            await ask(queue, rows(value))
        queue.close()

    asyncio.run(live(queue_of(Interrupted(), inline_s=0.1)))
    assert threads == [False, False, True, True, True, True]


def test_an_arm_that_gets_few_requests_runs_like_its_twin_that_gets_many():
    is_inline = []

    class Steady(Doubler):
        def __call__(self, feeds):
            is_inline.append(threading.current_thread() is threading.main_thread())
            threading.Event().wait(0.05)
            return super().__call__(feeds)

    async def live(queue):
        await ask(queue, *[rows(value) for value in range(5)])
        await ask(queue, rows(9))
        queue.close()

    asyncio.run(live(queue_of(Steady(), inline_s=0.03)))
    assert is_inline == [False, False]
