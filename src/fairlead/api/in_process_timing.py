"""Times the requests of a model in this process, without a server."""

from __future__ import annotations

from contextlib import closing
from typing import Final

import numpy as np

from fairlead.api.request_shares import latency_of, time_shares
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Feeds, Runner
from fairlead.measure.verdict import Surroundings

__all__ = ["padding_share", "time_in_process"]

_REQUESTS: Final = 200
_LIMIT_S: Final = 4.0
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
        times = time_requests(runner, one, requests=_REQUESTS, time_limit_s=_LIMIT_S)
        inflation = _inflation(bundle, runner, one, trust=trust)
    around = Surroundings(
        solo_run_ms=times.parts().run_ms / inflation, padding_ratio=padding_share(feeds)
    )
    evidence = time_shares(times, around, subject, _METHOD)
    return [*evidence, latency_of(times.server_ms, subject, _METHOD)]


def _inflation(bundle: Bundle, runner: Runner, one: Feeds, *, trust: bool) -> float:
    """Return how much longer a run takes than with the best number of threads, at least 1."""
    from fairlead.backends.cpus import usable_cpus
    from fairlead.backends.runners import open_runner
    from fairlead.measure.latency import measure_interleaved

    if bundle.manifest.kind != "onnx":
        return 1.0
    frugal = {"intra_op_threads": 1, "allow_spinning": False}
    wide = {"intra_op_threads": usable_cpus(), "allow_spinning": False}
    alone = [bundle.runtime.model_copy(update=change) for change in (frugal, wide)]
    with (
        closing(open_runner(bundle, runtime=alone[0], trust=trust)) as first,
        closing(open_runner(bundle, runtime=alone[1], trust=trust)) as second,
    ):
        timings = measure_interleaved(
            {
                "own": lambda: runner.run(one),
                "frugal": lambda: first.run(one),
                "wide": lambda: second.run(one),
            },
            time_limit_s=_LIMIT_S / 2,
        )
    best = min(timing.latency_p50_ms for timing in timings.values())
    return timings["own"].latency_p50_ms / max(best, 1e-9)


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
