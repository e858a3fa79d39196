"""Model or infrastructure: which part of a request's time decides, by rules in a fixed order.

| order | rule | cause |
|---|---|---|
| 1 | (client - server) / client > 0.3 | `network` |
| 2 | run / run alone >= 1.3, CPU per run / alone >= 1.3, or throttled periods > 1 % | `threads` |
| | or 2 and more threads of one run for each CPU | |
| 3 | queue / server >= 0.3 | `capacity` when utilisation >= 0.7 or unknown, else `batching` |
| 4 | rest / server >= 0.3, or padding >= 30 % | `data-path` |
| 5 | else, achieved / peak FLOP/s < 0.5 | `kernels` |
| 6 | else | `model` |

Causes 1 to 4 are the infrastructure, 5 and 6 the model and its runtime. A rule whose numbers are
not known is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from fairlead.core.errors import DataError
from fairlead.core.values import Value

__all__ = [
    "Bottleneck",
    "Cause",
    "DecidingNumber",
    "RequestTimes",
    "Surroundings",
    "TimeParts",
    "find_bottleneck",
    "judge_parts",
]

Cause = Literal["network", "threads", "capacity", "batching", "data-path", "kernels", "model"]

_NETWORK_SHARE = 0.3
_SLOWDOWN = 1.3
_CROWD = 2.0
_THROTTLED_SHARE = 0.01
_QUEUE_SHARE = 0.3
_BUSY = 0.7
_REST_SHARE = 0.3
_PADDING_SHARE = 0.3
_KERNEL_SHARE = 0.5
_RESAMPLES = 500
_MODEL_CAUSES = frozenset({"kernels", "model"})
_WORDS: dict[Cause, tuple[str, str]] = {
    "network": (
        "most of the time is lost between the client and the server",
        "send larger requests, keep connections open, or move the client closer",
    ),
    "threads": (
        "a run has more threads than CPUs, or costs more than alone: they are in each other's way",
        "use fewer threads per run (`fairlead optimize tune`) or raise the CPU limit",
    ),
    "capacity": (
        "requests wait because the server is busy",
        "add replicas (`fairlead serve scale`)",
    ),
    "batching": (
        "requests wait although the server is not busy, so they wait for company",
        "lower max_batch_wait_ms or max_batch_size",
    ),
    "data-path": (
        "reading requests and writing answers cost more than they should",
        "send binary tensors, more rows in a request, and move preparation out of it",
    ),
    "kernels": (
        "the model's own time decides, and it uses less than half of what the CPU can do",
        "tune the runtime (`fairlead optimize tune`) before you change the model",
    ),
    "model": (
        "the model's own time decides",
        "make it cheaper: `fairlead optimize quantize` or `fairlead optimize compress`",
    ),
}


_UNPADDED = "batch rows of like length, and pad to the longest of them, not to a fixed length"


class Surroundings(Value):
    """What is known beside the times of the requests; None is not known."""

    solo_run_ms: float | None = Field(None, gt=0)
    """Time of one run of the same batch while nothing else runs, in ms."""
    cpu_run_ms: float | None = Field(None, gt=0)
    """CPU time of one run under load, all threads together, in ms."""
    solo_cpu_run_ms: float | None = Field(None, gt=0)
    """CPU time of one run while nothing else runs, in ms."""
    throttled_ratio: float | None = Field(None, ge=0, le=1)
    """Share of the scheduling periods in which the CPU limit stopped the process."""
    threads_per_cpu: float | None = Field(None, gt=0)
    """Threads that one run is split into, per CPU that the process may use."""
    utilisation: float | None = Field(None, ge=0)
    """Share of the time in which the server was busy."""
    padding_ratio: float | None = Field(None, ge=0, le=1)
    """Share of the values that were only padding."""
    flops_ratio: float | None = Field(None, ge=0)
    """Achieved floating point operations per second, as a share of the machine's peak."""


class TimeParts(Value):
    """Where the time of a typical request goes, in ms."""

    run_ms: float = Field(gt=0)
    """Time the model ran."""
    queue_ms: float = Field(0.0, ge=0)
    """Time the request waited in the server."""
    rest_ms: float = Field(0.0, ge=0)
    """Time the server spent on it otherwise: reading, preparing, writing."""
    outside_ms: float | None = Field(None, ge=0)
    """Time between client and server; None when only the server was watched."""

    @property
    def server_ms(self) -> float:
        """Time within the server."""
        return self.run_ms + self.queue_ms + self.rest_ms

    @property
    def total_ms(self) -> float:
        """Time as the one sees it who is farthest away."""
        return self.server_ms + (self.outside_ms or 0.0)


class DecidingNumber(Value):
    """One number a rule looked at."""

    name: str
    value: float
    threshold: float
    is_met: bool


class Bottleneck(Value):
    """What decides how long a request takes."""

    cause: Cause
    is_model: bool
    """Whether it is the model or its runtime; else it is the infrastructure."""
    share: float
    """Share of the request's time that belongs to the cause, 0 to 1."""
    model_time_share: float
    """Share of the request's time in which the model runs, 0 to 1."""
    confidence: float | None
    """Share of resamples of the requests with the same cause; None for a single set of times."""
    numbers: tuple[DecidingNumber, ...]
    """What was looked at, in order, up to the rule that decided."""
    text: str
    advice: str


@dataclass(frozen=True)
class RequestTimes:
    """Times of single requests, each shape (n_requests,), in ms.

    Attributes:
        run_ms: Time the model ran.
        server_ms: Time within the server, run and queue included.
        queue_ms: Time in the queue; None when nobody measured it.
        client_ms: Time as the client saw it; None when only the server was watched.
    """

    run_ms: NDArray[np.float64]
    server_ms: NDArray[np.float64]
    queue_ms: NDArray[np.float64] | None = None
    client_ms: NDArray[np.float64] | None = None

    @classmethod
    def from_arrays(
        cls,
        *,
        run_ms: ArrayLike,
        server_ms: ArrayLike,
        queue_ms: ArrayLike | None = None,
        client_ms: ArrayLike | None = None,
    ) -> RequestTimes:
        """Check the arrays and take them.

        Raises:
            DataError: They are empty, of different lengths, or hold a time that is negative or
                not finite.
        """
        given = {
            "run_ms": run_ms,
            "server_ms": server_ms,
            "queue_ms": queue_ms,
            "client_ms": client_ms,
        }
        arrays = {
            name: np.asarray(values, dtype=np.float64).ravel()
            for name, values in given.items()
            if values is not None
        }
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) != 1 or lengths["run_ms"] == 0:
            raise DataError(
                f"the times have lengths {lengths}", hint="give one time per request, at least one"
            )
        for name, values in arrays.items():
            if not np.isfinite(values).all() or values.min() < 0:
                raise DataError(
                    f"{name} holds a time that is negative or not finite",
                    hint="leave out the requests that failed",
                )
        return cls(**arrays)

    @property
    def n_requests(self) -> int:
        """Number of requests, at least 1."""
        return len(self.run_ms)

    def parts(self, rows: NDArray[np.intp] | slice = slice(None)) -> TimeParts:
        """Return the mean times of some requests; means add up, percentiles do not."""
        run = max(float(self.run_ms[rows].mean()), 1e-9)
        server = float(self.server_ms[rows].mean())
        queue = float(self.queue_ms[rows].mean()) if self.queue_ms is not None else 0.0
        outside = None
        if self.client_ms is not None:
            outside = max(float(self.client_ms[rows].mean()) - server, 0.0)
        return TimeParts(
            run_ms=run,
            queue_ms=queue,
            rest_ms=max(server - run - queue, 0.0),
            outside_ms=outside,
        )


def find_bottleneck(
    times: RequestTimes, around: Surroundings | None = None, *, seed: int = 0
) -> Bottleneck:
    """Judge requests, and say how sure that is.

    Args:
        times: Times of single requests.
        around: What else is known.
        seed: Seed of the bootstrap over requests behind the confidence.
    """
    known = around or Surroundings()
    verdict = judge_parts(times.parts(), known)
    rng = np.random.default_rng(seed)
    n_requests = times.n_requests
    same = 0
    for _ in range(_RESAMPLES):
        picks = rng.integers(0, n_requests, n_requests)
        same += judge_parts(times.parts(picks), known).cause == verdict.cause
    return verdict.model_copy(update={"confidence": same / _RESAMPLES})


def judge_parts(parts: TimeParts, around: Surroundings | None = None) -> Bottleneck:
    """Apply the rules in order; the first one that is met decides.

    Args:
        parts: Where the time goes.
        around: What else is known.

    Examples:
        >>> judge_parts(TimeParts(run_ms=2.0, queue_ms=6.0, rest_ms=0.5)).cause
        'capacity'
    """
    known = around or Surroundings()
    seen: list[DecidingNumber] = []
    for cause, share, numbers in _rules(parts, known):
        seen.extend(numbers)
        if any(number.is_met for number in numbers):
            return _verdict(cause, share, parts, seen)
    return _verdict("model", parts.run_ms / parts.total_ms, parts, seen)


def _rules(
    parts: TimeParts, known: Surroundings
) -> Iterator[tuple[Cause, float, list[DecidingNumber]]]:
    """Yield cause, its share of the time, and the numbers that decide, rule by rule."""
    total, server = parts.total_ms, parts.server_ms
    outside = parts.outside_ms
    if outside is not None:
        share = outside / total
        met = share > _NETWORK_SHARE
        yield "network", share, [_number("outside / client", share, _NETWORK_SHARE, met)]
    yield "threads", _excess(parts, known) / total, _thread_numbers(parts, known)
    share = parts.queue_ms / server
    is_busy = known.utilisation is None or known.utilisation >= _BUSY
    queue = [_number("queue / server", share, _QUEUE_SHARE, share >= _QUEUE_SHARE)]
    if known.utilisation is not None:
        queue.append(_number("utilisation", known.utilisation, _BUSY, False))
    yield "capacity" if is_busy else "batching", parts.queue_ms / total, queue
    share = parts.rest_ms / server
    rest = [_number("rest / server", share, _REST_SHARE, share >= _REST_SHARE)]
    wasted = parts.rest_ms
    if known.padding_ratio is not None:
        is_padded = known.padding_ratio >= _PADDING_SHARE
        rest.append(_number("padding", known.padding_ratio, _PADDING_SHARE, is_padded))
        wasted += parts.run_ms * known.padding_ratio
    yield "data-path", wasted / total, rest
    if known.flops_ratio is not None:
        is_idle = known.flops_ratio < _KERNEL_SHARE
        number = _number("achieved / peak FLOP/s", known.flops_ratio, _KERNEL_SHARE, is_idle)
        yield "kernels", parts.run_ms / total, [number]


def _thread_numbers(parts: TimeParts, known: Surroundings) -> list[DecidingNumber]:
    numbers = []
    if known.solo_run_ms is not None:
        ratio = parts.run_ms / known.solo_run_ms
        numbers.append(_number("run / run alone", ratio, _SLOWDOWN, ratio >= _SLOWDOWN))
    if known.cpu_run_ms is not None and known.solo_cpu_run_ms is not None:
        ratio = known.cpu_run_ms / known.solo_cpu_run_ms
        numbers.append(_number("CPU per run / alone", ratio, _SLOWDOWN, ratio >= _SLOWDOWN))
    if known.throttled_ratio is not None:
        share = known.throttled_ratio
        is_throttled = share > _THROTTLED_SHARE
        numbers.append(_number("throttled periods", share, _THROTTLED_SHARE, is_throttled))
    if known.threads_per_cpu is not None:
        ratio = known.threads_per_cpu
        numbers.append(_number("threads / CPU", ratio, _CROWD, ratio >= _CROWD))
    return numbers


def _excess(parts: TimeParts, known: Surroundings) -> float:
    """Return how much longer runs are than alone, in ms; the whole run when that is not known."""
    if known.solo_run_ms is None:
        return parts.run_ms
    return max(parts.run_ms - known.solo_run_ms, 0.0)


def _number(name: str, value: float, threshold: float, is_met: bool) -> DecidingNumber:
    return DecidingNumber(name=name, value=value, threshold=threshold, is_met=is_met)


def _verdict(
    cause: Cause, share: float, parts: TimeParts, numbers: list[DecidingNumber]
) -> Bottleneck:
    text, advice = _WORDS[cause]
    met = {number.name: number for number in numbers if number.is_met}
    if cause == "data-path" and "padding" in met:
        text = f"{100 * met['padding'].value:.0f} % of what the model computes is padding"
        advice = _UNPADDED
    return Bottleneck(
        cause=cause,
        is_model=cause in _MODEL_CAUSES,
        share=min(share, 1.0),
        model_time_share=parts.run_ms / parts.total_ms,
        confidence=None,
        numbers=tuple(numbers),
        text=text,
        advice=advice,
    )
