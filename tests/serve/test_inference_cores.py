"""How a model divides the CPU cores: threads within a run, runs beside one another, batch sizes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.serve.inference.arms import free_signature, open_arm
from fairlead.serve.inference.batching import BatchQueue, QueueLimits
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.core_division import open_divided, threads_for
from fairlead.serve.inference.methods import METHODS
from fairlead.serve.inference.pace import Pace
from fairlead.serve.inference.row_costs import RowCosts

from . import inference_models as models

PATIENCE_S = 60


def costs_of(runs, times=8):
    costs = RowCosts()
    for rows, row_s in runs.items():
        for _ in range(times):
            costs.learn(rows, rows * row_s)
    return costs


def test_batches_grow_no_further_than_rows_get_cheaper():
    costs = costs_of({1: 1.2, 8: 1.01, 16: 1.0, 32: 1.1})
    assert costs.rows_to_run(64, 64) == 16
    assert costs.rows_to_run(5, 5) == 5


def test_what_was_never_run_is_tried():
    assert RowCosts().rows_to_run(500, 500) == 500
    assert costs_of({1: 2.0, 8: 1.0}).rows_to_run(500, 500) == 500
    assert costs_of({8: 1.0, 16: 1.5}, times=2).rows_to_run(500, 500) == 500


def test_rows_are_divided_where_that_costs_little():
    whole_costs = 1.0
    assert costs_of({4: 1.1, 8: whole_costs}).rows_to_run(8, 4) == 4
    assert costs_of({4: 1.9, 8: whole_costs}).rows_to_run(8, 4) == 8
    assert costs_of({8: whole_costs}).rows_to_run(8, 4) == 4


def test_a_disturbed_run_changes_little():
    costs = costs_of({16: 1.0, 32: 1.0})
    costs.learn(32, 32 * 60.0)
    assert costs.rows_to_run(64, 64) == 64


def test_what_was_dear_long_ago_is_tried_again():
    costs = costs_of({16: 1.0, 32: 2.0})
    assert costs.rows_to_run(32, 32) == 16
    for _ in range(1100):
        costs.learn(16, 16.0)
    assert costs.rows_to_run(32, 32) == 32


@pytest.mark.parametrize(
    ("row_ms", "cores", "threads"),
    [(0.01, 8, 1), (19, 8, 1), (30, 8, 2), (70, 8, 4), (900, 8, 8), (900, 6, 6), (900, 1, 1)],
)
def test_only_long_rows_are_shared_by_threads(row_ms, cores, threads):
    assert threads_for(row_ms / 1e3, cores) == threads


def divided(bundle, cores, *, is_one_of_many=False):
    runtime, runner = open_divided(
        bundle, free_signature(bundle.signature), cores, trust=False, is_one_of_many=is_one_of_many
    )
    runner.close()
    return runtime.intra_op_threads


def test_a_small_model_runs_in_one_thread_and_a_tuned_one_as_it_was_tuned(tmp_path):
    plain = models.classifier_bundle(tmp_path / "plain")
    assert divided(plain, 4) == 1
    runtime = RuntimeSettings(intra_op_threads=3, is_tuned=True)
    tuned = models.classifier_bundle(tmp_path / "tuned", runtime=runtime)
    assert divided(tuned, 4) == 3
    assert divided(tuned, 2, is_one_of_many=True) == 2


def test_an_untuned_arm_runs_as_many_batches_at_once_as_there_are_cores(tmp_path):
    bundle = models.classifier_bundle(tmp_path / "plain")
    arm = open_arm("baseline", bundle, ServingConfig(), cores=3)
    arm.close()
    assert arm.queue.limits.parallel_runs == 3


def test_a_process_that_stood_still_does_not_refuse_what_it_can_serve():
    pace = Pace(inline_s=0.0)
    for run_s in (0.05, 0.06, 60.0, 0.05, 60.0):
        pace.learn_aside(run_s, 0.05, 8)
    assert pace.wait_s(64, 2) < 1.0
    for _ in range(9):
        pace.learn_aside(2.0, 2.0, 8)
    assert pace.wait_s(64, 2) == 8.0


def queue_of(run, **limits):
    return BatchQueue(
        run,
        take=METHODS["adaptive-batching"],
        is_joinable=True,
        limits=QueueLimits(**{"max_batch_rows": 32, "inline_s": 0.0, **limits}),
        name="baseline",
    )


def submit(queue, values):
    future = asyncio.get_running_loop().create_future()
    feeds = {"x": np.asarray(values, np.float32).reshape(-1, 1)}

    def done(ending):
        if isinstance(ending, Exception):
            future.set_exception(ending)
        else:
            future.set_result(ending)

    queue.submit(feeds, len(feeds["x"]), done)
    return future


def live(queue, work):
    async def whole():
        try:
            return await work()
        finally:
            queue.close()

    return asyncio.run(whole())


def test_the_rows_of_a_lone_request_run_in_several_threads_at_once():
    together = threading.Barrier(2)

    def model(feeds):
        together.wait(PATIENCE_S)  # Nobody passes alone.
        return {"y": feeds["x"] * 2}

    queue = queue_of(model, parallel_runs=2, may_divide=True)

    async def work():
        return await submit(queue, range(7))

    result = live(queue, work)
    assert result.outputs["y"].ravel().tolist() == [2 * value for value in range(7)]
    assert result.batch_rows == 7


def test_a_divided_request_that_fails_is_told_so_and_harms_nobody():
    def model(feeds):
        if (feeds["x"] < 0).any():
            raise ModelError("negative", hint="be positive")
        return {"y": feeds["x"]}

    queue = queue_of(model, parallel_runs=2, may_divide=True)

    async def work():
        bad = await asyncio.gather(submit(queue, [1, 2, -3, 4]), return_exceptions=True)
        good = await submit(queue, [5, 6])
        return bad[0], good

    bad, good = live(queue, work)
    assert isinstance(bad, ModelError)
    assert good.outputs["y"].ravel().tolist() == [5, 6]


def test_threads_share_what_waits():
    """Sixteen requests over two threads: none of them is left with single rows."""
    sizes = []
    gate = threading.Event()

    def model(feeds):
        sizes.append(len(feeds["x"]))
        assert gate.wait(PATIENCE_S)
        return {"y": feeds["x"]}

    queue = queue_of(model, parallel_runs=2, may_divide=True)

    async def work():
        # What a row costs is known from a run of its own.
        gate.set()
        await submit(queue, [1])
        gate.clear()
        sizes.clear()
        futures = [submit(queue, [value]) for value in range(16)]
        while len(sizes) < 2:
            await asyncio.sleep(0.01)
        gate.set()
        return await asyncio.gather(*futures)

    live(queue, work)
    assert sizes == [8, 8]
