"""Presses a server with rising rates until it no longer keeps up."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from fairlead.core.errors import EndpointError, UsageError
from fairlead.core.ports import Progress
from fairlead.serve.scaling.config import LoadConfig
from fairlead.serve.scaling.plan import LoadStep, LoadTest

if TYPE_CHECKING:
    from fairlead.backends.load import LoadGenerator, Sample, Sender

__all__ = ["check_loopback", "measure_service_ms", "press"]

_KEPT_UP = 0.95
_CLOSE_ENOUGH = 1.1
_LAG_MS = 10.0
_QUEUE_MS = 20.0
_QUEUE_RATIO = 10.0
_WARMUP_REQUESTS = 64


def check_loopback(url: str) -> str:
    """Return a URL of this machine, or refuse: pressing somebody else's server is an attack.

    Raises:
        UsageError: The URL is neither http nor https, or leads to another machine.
    """
    parts = urlsplit(url)
    try:
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine:
        raise UsageError(
            f"{url!r} is not the URL of a server on this machine",
            hint="give for example http://127.0.0.1:8080",
        )
    if parts.hostname == "localhost":
        return url
    try:
        is_own = ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        is_own = False
    if not is_own:
        raise UsageError(
            f"{parts.hostname} is not this machine, and load tests run on loopback addresses only",
            hint="run it beside the server, against http://127.0.0.1:PORT",
        )
    return url


def press(
    open_sender: Callable[[], Sender],
    *,
    n_rows: int,
    url: str,
    service: str,
    config: LoadConfig,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> LoadTest:
    """Send requests at given rates and find the highest that the server sustains.

    Args:
        open_sender: Opens one connection that knows the rows.
        n_rows: Number of rows to send, in turn.
        url: For the report.
        service: For the report.
        config: Rates and limits.
        progress: Hears how far it is.
        clock: Seconds, for the limit on the whole test.

    Raises:
        EndpointError: The server answers no request at all.
    """
    from fairlead.backends.load import LoadGenerator

    rng = np.random.default_rng(config.seed)
    deadline = clock() + config.max_seconds
    steps: list[LoadStep] = []
    progress.begin("pressing the server", config.max_steps if config.search else 1)
    with LoadGenerator(open_sender, connections=config.connections) as load:
        _warm_up(load, n_rows)
        rate: float | None = config.rate_rps
        while rate is not None:
            idle_ms = min([step.p50_ms for step in steps], default=math.inf)
            steps.append(_step(load, rate, n_rows, config, rng, idle_ms))
            progress.advance()
            progress.note(_told(steps[-1]))
            is_over = len(steps) >= config.max_steps or clock() >= deadline
            rate = None if is_over or not config.search else _next_rate(steps)
    good = [step.rate_rps for step in steps if step.is_sustained]
    return LoadTest(
        url=url,
        service=service,
        steps=tuple(steps),
        saturation_rps=max(good, default=None),
        is_limit_found=any(not step.is_sustained for step in steps),
    )


def _told(step: LoadStep) -> str:
    word = "kept up" if step.is_sustained else "too much"
    return f"{step.rate_rps:.0f} rps: {word}, p99 {step.p99_ms:.3g} ms"


def _warm_up(load: LoadGenerator, n_rows: int) -> None:
    rows = [index % n_rows for index in range(_WARMUP_REQUESTS)]
    samples = load.run(rows, [f"warm-up-{index}" for index in range(len(rows))])
    refuse_silence(samples)


def refuse_silence(samples: Sequence[Sample]) -> None:
    """Raise when no request was served.

    Raises:
        EndpointError: None was.
    """
    if any(sample.answer.is_served for sample in samples):
        return
    first = samples[0].answer
    what = f"answers {first.status}" if first.status else "does not answer"
    raise EndpointError(
        f"the server {what}: {first.error}",
        hint="check URL, model name and data with one request before you press it",
    )


def _next_rate(steps: Sequence[LoadStep]) -> float | None:
    """Double until it is too much, then halve the gap until it is small."""
    good = max((step.rate_rps for step in steps if step.is_sustained), default=None)
    bad = min((step.rate_rps for step in steps if not step.is_sustained), default=None)
    if good is None:
        return None if bad is None or bad < 1.0 else bad / 2
    if bad is None:
        return good * 2
    if bad <= good * _CLOSE_ENOUGH:
        return None
    return (good + bad) / 2


def _step(
    load: LoadGenerator,
    rate: float,
    n_rows: int,
    config: LoadConfig,
    rng: np.random.Generator,
    idle_ms: float,
) -> LoadStep:
    from fairlead.backends.load import poisson_offsets

    count = max(round(rate * config.step_seconds), 20)
    offsets = poisson_offsets(rate, count, rng)
    rows = [index % n_rows for index in range(count)]
    ids = [f"load-{index}" for index in range(count)]
    limit_s = 2 * offsets[-1] + config.timeout_s
    samples = load.run(rows, ids, offsets_s=offsets, limit_s=limit_s)
    return _summary(samples, count, rate, config, idle_ms)


def _summary(
    samples: Sequence[Sample], count: int, rate: float, config: LoadConfig, idle_ms: float
) -> LoadStep:
    span_s = count / rate
    served = [sample for sample in samples if sample.answer.is_served]
    latency = np.array([sample.latency_ms for sample in served] or [np.inf])
    p50, p95, p99 = (float(value) for value in np.percentile(latency, (50, 95, 99)))
    ended = max((sample.done_s for sample in samples), default=span_s)
    achieved = len(served) / max(ended, span_s)
    error_ratio = 1.0 - len(served) / count
    is_fast = config.max_p99_ms is None or p99 <= config.max_p99_ms
    kept_up = achieved >= _KEPT_UP * rate and not _is_queueing(served, idle_ms)
    return LoadStep(
        rate_rps=rate,
        achieved_rps=achieved,
        requests=count,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        error_ratio=error_ratio,
        is_sustained=kept_up and is_fast and error_ratio <= config.max_error_ratio,
        is_client_bound=_is_client_bound(served, achieved, config.connections),
    )


def _is_queueing(served: Sequence[Sample], idle_ms: float) -> bool:
    """Tell a queue that had grown long by the end of a step from a server that keeps up."""
    last = [sample.latency_ms for sample in served[-max(len(served) // 4, 1) :]]
    if not last or not math.isfinite(idle_ms):
        return False
    return float(np.median(last)) > max(_QUEUE_MS, _QUEUE_RATIO * idle_ms)


def _is_client_bound(served: Sequence[Sample], achieved: float, connections: int) -> bool:
    """Tell a slow client: requests leave late although connections were free (Little's law)."""
    if not served:
        return False
    lag_ms = float(np.percentile([s.sent_s - s.intended_s for s in served], 95)) * 1e3
    under_way = achieved * float(np.mean([s.done_s - s.sent_s for s in served]))
    return lag_ms > _LAG_MS and under_way < 0.5 * connections


def measure_service_ms(
    open_sender: Callable[[], Sender], *, n_rows: int, requests: int, progress: Progress
) -> list[float]:
    """Send one request after another, and return how long each took, in ms.

    Without company no request waits for another, so this is the service time of one replica as
    its clients see it.

    Raises:
        EndpointError: The server answers no request at all.
    """
    from fairlead.backends.load import LoadGenerator

    progress.begin("measuring service times", requests)
    with LoadGenerator(open_sender, connections=1) as load:
        _warm_up(load, n_rows)
        rows = [index % n_rows for index in range(requests)]
        samples = load.run(rows, [f"service-{index}" for index in range(requests)])
    refuse_silence(samples)
    progress.advance(requests)
    return [(s.done_s - s.sent_s) * 1e3 for s in samples if s.answer.is_served]
