"""Models that are run in processes of their own."""

import numpy as np

from fairlead.backends.model_probe import probe_models
from fairlead.backends.onnx_graph import write_graph
from fairlead.core.bundle import RuntimeSettings
from tests.optimize import zoo

RUNTIME = RuntimeSettings(intra_op_threads=1)


def test_memory_and_the_empty_batch_are_told_for_each_model() -> None:
    feeds = {"x": np.zeros((4, 512), np.float32)}
    small = write_graph(zoo.dense(sizes=(512, 8, 4)))
    large = write_graph(zoo.dense(sizes=(512, 8192, 4096, 4)))
    one, two, none = probe_models(
        [(small, RUNTIME), (large, RUNTIME), (b"\x08nonsense", RUNTIME)], feeds
    )
    assert one is not None
    assert two is not None
    assert one.takes_empty_batch
    assert one.peak_memory_bytes is not None
    assert two.peak_memory_bytes is not None
    assert two.peak_memory_bytes > one.peak_memory_bytes + 80_000_000
    assert none is None


def test_text_cannot_be_probed() -> None:
    feeds = {"x": np.array([["a"]], dtype=object)}
    assert probe_models([(b"", RUNTIME)], feeds) == (None,)
