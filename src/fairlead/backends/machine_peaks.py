"""What this machine reaches at most: arithmetic and memory of one thread, in CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fairlead.core.extras import requires
from fairlead.measure.roofline import MachinePeaks

__all__ = ["measure_peaks"]

_SIDE = 512
_COPY_BYTES = 64 * 2**20
_REPEATS = 7


@lru_cache(maxsize=1)
def measure_peaks() -> MachinePeaks:
    """Measure the peaks of one thread, once per process; takes about half a second.

    The fastest of several repetitions counts, in CPU time of this thread: neighbours on a busy
    machine only slow down.

    Raises:
        MissingExtraError: ONNX Runtime or onnx is not installed.
    """
    operations = 2.0 * _SIDE**3
    return MachinePeaks(
        gflops=operations / _fastest_s(_product("float")) / 1e9,
        int8_gops=operations / _fastest_s(_product("int8")) / 1e9,
        gbytes_per_s=2.0 * _COPY_BYTES / _fastest_s(_copy()) / 1e9,
    )


def _product(kind: str) -> Callable[[], object]:
    with requires("optimize", needed_by="measuring this machine"):
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    rng = np.random.default_rng(0)
    shape = [_SIDE, _SIDE]
    if kind == "float":
        weights = rng.normal(size=shape).astype(np.float32)
        left = rng.normal(size=shape).astype(np.float32)
        operator, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
    else:
        weights = rng.integers(-64, 64, shape).astype(np.int8)
        left = rng.integers(0, 255, shape).astype(np.uint8)
        operator, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", types[0], shape)],
        [helper.make_tensor_value_info("y", types[1], shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": left})


def _copy() -> Callable[[], object]:
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)
    return lambda: np.copyto(target, source)


def _fastest_s(work: Callable[[], object]) -> float:
    work()
    found = []
    for _ in range(_REPEATS):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return max(min(found), 1e-6)
