"""How a model divides the CPU cores it may use: threads within a run, or several runs at once.

Threads within a run cost CPU time, because they wait for one another at every operator; several
runs at once do not. So a model whose rows are computed soon gets one thread per run, and as many
runs as there are cores. Only where a lone request would wait long for its single row do several
threads share the run. Tuning measures it properly; this is for bundles that were not tuned.
"""

from __future__ import annotations

import math
import time

from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import FairleadError
from fairlead.core.ports import Array, Runner
from fairlead.core.signature import Signature, conform
from fairlead.measure.quality import run_batches
from fairlead.serve.inference.examples import example_feeds

__all__ = ["open_divided", "threads_for"]

_ROW_GOAL_S = 0.02
"""A row that one thread computes within this time gets no second one."""
_LARGE_BYTES = 512 << 20
"""A file of this size is not loaded twice to find out: its rows take long."""
_TRIALS = 3
_FREE_SIZE = 32
"""What a free dimension beside the rows is taken for, such as a length of text."""


def open_divided(
    bundle: Bundle, signature: Signature, cores: int, *, trust: bool, is_one_of_many: bool
) -> tuple[RuntimeSettings, Runner]:
    """Load the model of a bundle with a number of threads that suits it.

    Args:
        bundle: What to serve.
        signature: What it takes and gives, with free rows.
        cores: CPU cores that it may use.
        trust: Whether code that came with the model may run.
        is_one_of_many: Whether other processes serve the same bundle; it was then tuned for more
            cores than there are here.

    Returns:
        The settings that were chosen, and the loaded model.

    Raises:
        UntrustedError: Loading would run code, and `trust` is off.
        ModelError: The model cannot be loaded.
    """
    from fairlead.backends.runners import open_runner

    tuned = bundle.runtime.intra_op_threads
    threads = tuned or (1 if _can_try(bundle) else cores)
    if is_one_of_many:
        threads = min(threads, cores)
    runtime = bundle.runtime.model_copy(update={"intra_op_threads": threads})
    runner = open_runner(bundle, runtime=runtime, trust=trust)
    if tuned or threads == cores:
        return runtime, runner
    wanted = threads_for(_row_s(bundle, runner, signature), cores)
    if wanted == threads:
        return runtime, runner
    runner.close()
    runtime = bundle.runtime.model_copy(update={"intra_op_threads": wanted})
    return runtime, open_runner(bundle, runtime=runtime, trust=trust)


def threads_for(row_s: float, cores: int) -> int:
    """Return how many threads share a run: a power of two that brings a row near its goal.

    Args:
        row_s: CPU time of one row in one thread, in seconds.
        cores: CPU cores that there are.
    """
    if row_s <= _ROW_GOAL_S:
        return 1
    return min(cores, 1 << math.ceil(math.log2(row_s / _ROW_GOAL_S)))


def _can_try(bundle: Bundle) -> bool:
    """Whether the model can be opened to see how fast it is: it is no code and not too large."""
    if bundle.manifest.kind != "onnx" or not bundle.runtime.execution_provider.startswith("CPU"):
        return False
    return bundle.model_path.stat().st_size < _LARGE_BYTES


def _row_s(bundle: Bundle, runner: Runner, signature: Signature) -> float:
    """Return the CPU time that one row takes in this thread, in seconds; 0 where none runs."""
    feeds = example_feeds(bundle, signature, 1)
    shortest = math.inf
    for sized in (_with_sizes(feeds, signature), feeds):
        try:
            ready = conform(sized, signature)
            for _ in range(_TRIALS):
                before = time.thread_time()
                run_batches(runner, ready, 1)
                shortest = min(shortest, time.thread_time() - before)
                if shortest > _TRIALS * _ROW_GOAL_S:
                    break
        except FairleadError:
            continue  # Warming up tells what is wrong with the model.
        return shortest
    return 0.0


def _with_sizes(feeds: dict[str, Array], signature: Signature) -> dict[str, Array]:
    """Return the row with its free dimensions as long as they may well be."""
    found = dict(feeds)
    for spec in signature.inputs:
        array = found[spec.name]
        for axis, size in enumerate(spec.shape[1:], 1):
            if size == -1 and array.shape[axis] == 1:
                array = array.repeat(_FREE_SIZE, axis)
        found[spec.name] = array
    return found
