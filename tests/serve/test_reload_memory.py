"""A model that was replaced is gone from memory, whatever remembers the requests it answered."""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
import weakref

import numpy as np
import pytest

from fairlead.backends.prediction_log import LogCounts
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.dataplane import InferenceRequest
from fairlead.serve.inference.metrics import ServingMetrics
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.planes import PlaneOpener
from fairlead.serve.inference.recording import log_observer, open_log
from fairlead.serve.inference.repository import ModelSource, Repository

from . import inference_models as models

RELOADS = 12
ROW = np.ones((1, 4), np.float32)


@pytest.mark.parametrize("batching", ["adaptive-batching", "request-at-a-time"])
def test_nothing_refers_to_a_model_that_was_replaced(tmp_path, batching):
    spare = [models.classifier_bundle(tmp_path / f"v{n}", shift=n / 2).path for n in range(2)]
    place = tmp_path / "live"
    shutil.copytree(spare[0], place)
    config = ServingConfig(batching=batching, request_timeout_s=3600)
    outcomes = OutcomeRing()
    metrics = ServingMetrics("wines", lambda: LogCounts(0, 0, 0))
    born: list[weakref.ref] = []

    async def life(repository):
        for number in range(RELOADS):
            plane = repository.dataplane()
            born.extend(
                weakref.ref(item)
                for item in (plane, plane.baseline, plane.baseline.queue, plane.baseline.runner)
            )
            await plane.infer(InferenceRequest({"x": ROW}, time.perf_counter()))
            del plane
            shutil.rmtree(place)
            shutil.copytree(spare[(number + 1) % 2], place)
            await repository.load("wines")
        await repository.drain()

    log = open_log(tmp_path / "predictions", config)
    try:
        opener = PlaneOpener(
            config,
            lambda name: [outcomes.observe, metrics.observe, log_observer(log, name)],
            cores=1,
            default_model="wines",
        )
        repository = Repository([ModelSource("wines", place)], opener)
        repository.start()

        async def run():
            await life(repository)
            # Observers were told; the log's thread may still hold the very last requests.
            for _ in range(300):
                gc.collect()
                if not any(item() is not None for item in born):
                    return
                await asyncio.sleep(0.05)

        asyncio.run(run())
        assert [type(item()).__name__ for item in born if item() is not None] == []
        assert len(outcomes.read(0, 100)["outcomes"]) == RELOADS
        assert metrics.render(None).count(b"fairlead_requests_total{") == 2
        repository.close()
    finally:
        log.close()
