"""The queue in front of a model, in a real event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

import numpy as np
import pytest

from fairlead.core.errors import ModelError, OverloadedError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.serve.inference.batching import BatchQueue, QueueLimits
from fairlead.serve.inference.methods import METHODS
from fairlead.serve.inference.methods.queue import Waiting
from fairlead.serve.inference.pace import Pace
from fairlead.serve.inference.padding import Padding, bucket_of
from fairlead.serve.inference.run_times import RunTimes


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


def submit(queue, feeds, *, n_rows=None, **options):
    """Queue a request; the future is its ending."""
    future = asyncio.get_running_loop().create_future()

    def done(ending):
        if isinstance(ending, Exception):
            future.set_exception(ending)
        else:
            future.set_result(ending)

    handles[future] = queue.submit(feeds, n_rows or len(feeds["x"]), done, **options)
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


def test_what_is_late_is_not_run_and_what_runs_too_long_is_answered():
    gate = threading.Event()
    model = Doubler(gate)

    async def live():
        queue = queue_of(model, max_batch_rows=1)
        now = time.perf_counter()
        running = submit(queue, rows(1), deadline=now + 0.05)
        waiting = submit(queue, rows(2), deadline=now + 0.05)
        patient = submit(queue, rows(3), deadline=now + 60)
        found = await asyncio.gather(running, waiting, return_exceptions=True)
        assert [type(item) for item in found] == [TimeoutError, TimeoutError]
        assert queue.n_pending == 1
        gate.set()
        assert (await patient).outputs["y"].ravel().tolist() == [6]
        queue.close()

    asyncio.run(live())
    assert len(model.batches) == 2  # the one that had begun, and the patient one


def test_the_urgent_goes_first_and_the_unimportant_last():
    gate = threading.Event()
    seen = []

    class Watched(Doubler):
        def __call__(self, feeds):
            found = super().__call__(feeds)
            seen.append(feeds["x"].ravel().tolist()[0])
            return found

    async def live():
        queue = queue_of(Watched(gate), max_batch_rows=1)
        first = submit(queue, rows(0))
        await asyncio.sleep(0)
        held = [submit(queue, rows(v), priority=p) for v, p in ((1, -1), (2, 0), (3, 1), (4, 0))]
        gate.set()
        await asyncio.gather(first, *held)
        queue.close()

    asyncio.run(live())
    assert seen == [0, 3, 2, 4, 1]


def test_a_queue_that_is_too_slow_refuses_early_and_the_unimportant_first():
    gate = threading.Event()
    gate.set()

    class Slow(Doubler):
        def __call__(self, feeds):
            threading.Event().wait(0.02 * len(feeds["x"]))
            return super().__call__(feeds)

    async def live():
        queue = queue_of(Slow(gate), max_batch_rows=1, max_delay_s=0.15)
        await submit(queue, rows(0))
        held = []
        with pytest.raises(OverloadedError, match="too late") as refused:  # noqa: PT012
            for value in range(100):
                held.append(submit(queue, rows(value)))
        assert refused.value.retry_after_s >= 1
        assert 2 <= len(held) < 40
        with pytest.raises(OverloadedError):
            queue.check_room(-1)
        queue.check_room(1)
        with pytest.raises(OverloadedError):
            queue.check_room(1, time.perf_counter() + 0.01)
        await asyncio.gather(*held)
        queue.close()

    asyncio.run(live())


def test_batches_stay_within_the_latency_budget():
    class Steady(Doubler):
        def __call__(self, feeds):
            threading.Event().wait(0.01 * len(feeds["x"]))
            return super().__call__(feeds)

    model = Steady()

    async def live():
        queue = queue_of(model, max_batch_rows=64, latency_budget_s=0.08)
        await ask(queue, rows(0))
        await ask(queue, *[rows(v) for v in range(40)])
        queue.close()

    asyncio.run(live())
    assert sum(model.batches) == 41
    assert 2 <= max(model.batches) <= 16  # of 40 that wait; 4 where nothing disturbs the runs


def ran(fixed_s, row_s, budget_s, runs=60):
    """Rows of the batches of an arm whose queue never empties."""
    times, sizes = RunTimes(), []
    for _ in range(runs):
        rows = max(1, int(min(64, times.rows_within(budget_s) if sizes else 1)))
        sizes.append(rows)
        times.learn(rows, fixed_s + row_s * rows)
    return sizes


@pytest.mark.parametrize(
    ("fixed_s", "row_s", "expected"),
    [(0.010, 0.004, 7), (0.030, 0.001, 9), (0.0, 0.010, 3), (0.039, 0.0, 64), (0.050, 0.004, 1)],
)
def test_a_budget_is_used_whatever_part_of_a_run_its_rows_cost(fixed_s, row_s, expected):
    """What a run costs whatever its size is not taken for the price of its rows."""
    sizes = ran(fixed_s, row_s, 0.04)
    assert sizes[-1] in {expected, expected + 1}
    assert fixed_s + row_s * sizes[-1] <= max(0.0401, fixed_s + row_s)


def test_a_run_that_the_machine_held_up_changes_little():
    times = RunTimes()
    for rows in (1, 2, 4, 8) * 20:
        times.learn(rows, 0.010 + 0.001 * rows)
    times.learn(4, 5.0)
    assert times.rows_within(0.02) >= 4
    for _ in range(200):
        times.learn(8, 0.018)
    assert times.rows_within(0.02) >= 8


def test_sequences_are_padded_run_together_and_cut_back():
    shapes = []

    def run_model(feeds):
        shapes.append(feeds["ids"].shape)
        assert feeds["ids"].dtype == np.int64
        shown = feeds["ids"] * feeds["mask"]
        return {"same": shown * 10, "sum": shown.sum(axis=1)}

    signature = Signature(
        inputs=tuple(TensorSpec(name=n, dtype="int64", shape=(-1, -1)) for n in ("ids", "mask")),
        outputs=(
            TensorSpec(name="same", dtype="int64", shape=(-1, -1)),
            TensorSpec(name="sum", dtype="int64", shape=(-1,)),
        ),
    )
    padding = Padding.for_signature({"ids": 7, "mask": 0}, signature)

    def sequence(length, n_rows=1):
        ids = np.arange(1, length + 1)[None].repeat(n_rows, axis=0)
        return {"ids": ids, "mask": np.ones_like(ids)}

    async def live():
        queue = BatchQueue(
            run_model, take=METHODS["adaptive-batching"], is_joinable=True,
            limits=QueueLimits(max_batch_rows=16), name="baseline", padding=padding,
        )  # fmt: skip
        requests = [sequence(5), sequence(6, 2), sequence(12), sequence(5)]
        found = await asyncio.gather(
            *[submit(queue, feeds, n_rows=len(feeds["ids"])) for feeds in requests]
        )
        queue.close()
        return requests, [item.outputs for item in found]

    requests, found = asyncio.run(live())
    assert sorted(shapes) == [(1, 12), (4, 6)]
    for feeds, outputs in zip(requests, found, strict=True):
        np.testing.assert_array_equal(outputs["same"], feeds["ids"] * 10)
        np.testing.assert_array_equal(outputs["sum"], feeds["ids"].sum(axis=1))


@pytest.mark.parametrize("length", range(1, 130))
def test_a_bucket_wastes_at_most_a_third(length):
    bucket = bucket_of(length)
    assert length <= bucket
    assert bucket_of(bucket) == bucket
    assert length <= 2 or length > bucket * 2 / 3 - 1


def test_padding_needs_a_value_for_every_sequence_and_nothing_else_that_is_free():
    def of(**shapes):
        specs = tuple(TensorSpec(name=n, dtype="int64", shape=s) for n, s in shapes.items())
        return Signature(inputs=specs, outputs=())

    assert Padding.for_signature({"a": 0}, of(a=(-1, -1))) is not None
    assert Padding.for_signature({"a": 0}, of(a=(-1, -1), b=(-1, -1))) is None
    assert Padding.for_signature({"a": 0}, of(a=(-1, 4))) is None
    assert Padding.for_signature({"a": 0}, of(a=(-1, -1, -1))) is None
    assert Padding.for_signature({}, of(a=(-1, -1))) is None


def test_a_model_that_waits_for_others_is_soon_kept_out_of_the_loop():
    pace = Pace(inline_s=0.001)
    pace.learn_aside(0.003, 0.0001, 1)  # little computing: perhaps it waited for the interpreter
    assert pace.is_short(1)
    for _ in range(9):
        pace.learn_inline(0.003, 1)
    assert not pace.is_short(1)
    for _ in range(9):
        pace.learn_aside(0.003, 0.0001, 1)
        assert not pace.is_short(1)


def test_a_model_that_waited_for_the_interpreter_a_few_times_comes_back():
    pace = Pace(inline_s=0.001)
    for _ in range(9):
        pace.learn_inline(0.0001, 1)
    for _ in range(8):
        pace.learn_inline(0.003, 1)
    assert not pace.is_short(1)
    for _ in range(5):
        pace.learn_aside(0.0001, 0.0001, 1)
    assert pace.is_short(1)
    assert pace.is_short(4)
    assert not pace.is_short(100)
