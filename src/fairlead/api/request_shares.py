"""Times of requests as measurements: which share is whose."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fairlead.core.evidence import Evidence
from fairlead.measure.verdict import Bottleneck, RequestTimes, Surroundings, find_bottleneck

__all__ = ["latency_of", "time_shares"]

_SKILL: Final = "production-debugging-techniques"
_METHODS: Final = {
    "threads_per_cpu": "threads of one run over the CPUs that the process may use",
    "padding_share": "padded steps of the sequences over all steps",
}
"""How what is no time was measured."""


def time_shares(
    times: RequestTimes, around: Surroundings, subject: str, method: str
) -> list[Evidence]:
    """Return the shares of a request's time, each with what decides it.

    The model's share counts the time that it needs on its own: what too many threads or padding
    add to a run belongs to the infrastructure.

    Args:
        times: Times of single requests.
        around: What else is known.
        subject: What the measurements are filed under.
        method: Which requests these were, for people.
    """
    verdict: Bottleneck = find_bottleneck(times, around)
    parts = times.parts()
    needed = min(parts.run_ms, around.solo_run_ms or parts.run_ms)
    needed *= 1.0 - (around.padding_ratio or 0.0)
    found = {"model_time_share": needed / parts.total_ms}
    if times.queue_ms is not None:
        found["queue_time_share"] = parts.queue_ms / parts.total_ms
    if parts.outside_ms is not None:
        found["network_time_share"] = parts.outside_ms / parts.total_ms
    if around.threads_per_cpu is not None:
        found["threads_per_cpu"] = around.threads_per_cpu
    if around.padding_ratio is not None:
        found["padding_share"] = around.padding_ratio
    side = "model" if verdict.is_model else "infrastructure"
    labels = {"cause": verdict.cause, "verdict": side, "why": verdict.text}
    return [
        Evidence(
            metric=metric,
            value=value,
            unit="ratio",
            method=_METHODS.get(metric, f"mean over {method}"),
            subject=subject,
            sample_size=times.n_requests,
            skill=_SKILL,
            labels=labels,
        )
        for metric, value in found.items()
    ]


def latency_of(values_ms: NDArray[np.float64], subject: str, method: str) -> Evidence:
    """Return the 95th percentile of some latencies, in ms."""
    return Evidence(
        metric="latency_p95_ms",
        value=float(np.percentile(values_ms, 95)),
        unit="ms",
        method=method,
        subject=subject,
        sample_size=len(values_ms),
        skill=_SKILL,
    )
