"""Times the requests of a model in this process, without a server."""

from __future__ import annotations

import time
from contextlib import closing
from statistics import median
from typing import Final

import numpy as np

from fairlead.api.request_shares import latency_of, time_shares
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.dataset import Dataset, bind
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Feeds
from fairlead.measure.latency import Timing, measure_interleaved
from fairlead.measure.verdict import Surroundings

__all__ = ["padding_share", "time_in_process"]

_REQUESTS: Final = 200
_LIMIT_S: Final = 4.0
_FEWEST_BLOCKS: Final = 3
_MOST_BLOCKS: Final = 7
_METHOD: Final = "in-process requests of one row, JSON"


def time_in_process(
    bundle: Bundle, rows: Dataset, *, subject: str, trust: bool = False
) -> list[Evidence]:
    """Time single requests without a server: read JSON, run the model, write JSON.

    The model's share counts the time it needs on its own: what too many threads or padding add to
    a run belongs to the infrastructure.

    Args:
        bundle: The model.
        rows: Rows to run.
        subject: What the measurements are filed under.
        trust: Whether code that came with the model may run.
    """
    from fairlead.backends.runners import open_runner
    from fairlead.measure.comparison import rows_for
    from fairlead.measure.request_path import time_requests

    feeds = bind(rows, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    with closing(open_runner(bundle, trust=trust)) as runner:
        one = rows_for(runner, feeds, 1)
    inflation = _inflation(bundle, one, trust=trust)
    with closing(open_runner(bundle, trust=trust)) as runner:
        times = time_requests(runner, one, requests=_REQUESTS, time_limit_s=_LIMIT_S)
    around = Surroundings(
        solo_run_ms=times.parts().run_ms / inflation,
        padding_ratio=padding_share(feeds),
        threads_per_cpu=_threads_per_cpu(bundle),
    )
    evidence = time_shares(times, around, subject, _METHOD)
    return [*evidence, latency_of(times.server_ms, subject, _METHOD)]


def _threads_per_cpu(bundle: Bundle) -> float | None:
    """Return the threads of one run per usable CPU, or None where the runtime chooses them."""
    from fairlead.backends.cpus import usable_cpus

    threads = bundle.runtime.intra_op_threads
    if bundle.manifest.kind != "onnx" or not threads:
        return None
    return threads / max(usable_cpus(), 1)


def _inflation(bundle: Bundle, one: Feeds, *, trust: bool) -> float:
    """Return how many times as much a run costs as with one thread that sleeps when idle.

    Threads that spin, and more threads than CPUs, are judged by CPU time as well: they take it from
    everything else, even where a quiet machine hides it from the clock.
    """
    from fairlead.backends.cpus import usable_cpus

    own = bundle.runtime
    threads = own.intra_op_threads or 1
    if bundle.manifest.kind != "onnx" or (threads == 1 and not own.allow_spinning):
        return 1.0
    frugal = own.model_copy(update={"intra_op_threads": 1, "allow_spinning": False})
    slower: list[float] = []
    dearer: list[float] = []
    deadline = time.monotonic() + _LIMIT_S
    while len(slower) < _FEWEST_BLOCKS or (
        len(slower) < _MOST_BLOCKS and time.monotonic() < deadline
    ):
        # One after the other: threads that spin would be counted against the other session too.
        alone = _timing(bundle, frugal, one, trust=trust)
        crowded = _timing(bundle, own, one, trust=trust)
        # Threads in each other's way make many runs fast and some very slow: medians hide it.
        slower.append(float(crowded.wall_ms.mean()) / max(float(alone.wall_ms.mean()), 1e-9))
        dearer.append(float(crowded.cpu_ms.mean()) / max(float(alone.cpu_ms.mean()), 1e-9))
    is_crowded = threads > usable_cpus() or own.allow_spinning
    # The clock of a busy machine is off either way; CPU time is only ever too low, while the
    # machine leaves the threads that are too many no turn.
    return max(median(slower), max(dearer) if is_crowded else 1.0, 1.0)


def _timing(bundle: Bundle, runtime: RuntimeSettings, one: Feeds, *, trust: bool) -> Timing:
    from fairlead.backends.runners import open_runner

    with closing(open_runner(bundle, runtime=runtime, trust=trust)) as runner:
        timings = measure_interleaved(
            {"one": lambda: runner.run(one)}, time_limit_s=_LIMIT_S / _MOST_BLOCKS / 2
        )
    return timings["one"]


def padding_share(feeds: Feeds) -> float | None:
    """Return the share of a sequence batch that is only padding, or None without sequences.

    A mask says it itself; token ids are padded by zeros at the end. Numbers that are measured,
    such as pixels, may end in zeros and count as values.

    Args:
        feeds: One array per input, first dimension the rows.

    Examples:
        >>> padding_share({"attention_mask": np.array([[1, 1, 0, 0]])})
        0.5
    """
    for name, array in feeds.items():
        if "mask" in name.lower() and array.ndim == 2 and array.size:
            return float(np.mean(np.asarray(array) == 0))
    for array in feeds.values():
        if array.ndim == 2 and array.dtype.kind in "iu" and array.shape[1] >= 8:
            filled = np.asarray(array) != 0
            ends = np.where(filled.any(1), array.shape[1] - np.argmax(filled[:, ::-1], 1), 0)
            return float(1 - ends.mean() / array.shape[1])
    return None
