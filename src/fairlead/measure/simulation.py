"""Discrete-event simulation of replicas behind load balancers, driven by measured service times.

Formulas for queues need the shape of the service times and fit one policy only; a simulation takes
the sample as it is and plays the policy as it is (Law 2015, "Simulation Modeling and Analysis").
Times are in milliseconds throughout.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["POLICIES", "Policy", "SimulatedLoad", "erlang_c", "pooled", "simulate"]

Policy = Literal["central-queue", "least-outstanding", "power-of-two-choices", "round-robin"]
Floats = NDArray[np.float64]

_WARMUP_RATIO = 0.1
_UNSTABLE_GROWTH = 3.0


@dataclass(frozen=True)
class SimulatedLoad:
    """What one policy makes of one load.

    Attributes:
        latency_ms: Waiting plus service of each request after the warm-up, shape (n,).
        utilisation: Busy time as a ratio of all slots' time.
        is_stable: Whether the queue stopped growing.
    """

    latency_ms: Floats
    utilisation: float
    is_stable: bool

    def percentile(self, percent: float) -> float:
        """Return a latency percentile in ms; infinite when the queue grows without end."""
        if not self.is_stable:
            return math.inf
        return float(np.percentile(self.latency_ms, percent))


@dataclass(frozen=True)
class _Arrivals:
    at_ms: list[float]
    service_ms: list[float]
    gateway: list[int]
    dice: list[float]


def simulate(
    service_ms: Floats,
    *,
    rate_rps: float,
    replicas: int,
    policy: Policy,
    requests: int = 20_000,
    slots: int = 1,
    gateways: int = 1,
    seed: int = 0,
) -> SimulatedLoad:
    """Play Poisson arrivals against replicas whose service times are drawn from a sample.

    Args:
        service_ms: Measured service times in ms, shape (n,), positive.
        rate_rps: Arrivals per second.
        replicas: Number of replicas, each with its own first-come-first-served queue (one queue
            for all with `central-queue`).
        policy: How a gateway chooses the replica.
        requests: Number of arrivals; the first tenth only warms up.
        slots: Requests that a replica works on at the same time.
        gateways: Load balancers that share the arrivals evenly at random, each counting only
            its own requests; a central queue is shared by all.
        seed: Seed of arrivals, service times and choices.

    Returns:
        The latencies of the requests after the warm-up.
    """
    load = replicas * slots
    arrivals = _draw(service_ms, rate_rps, requests, gateways, seed)
    starts = POLICIES[policy](arrivals, replicas, slots, gateways)
    at = np.asarray(arrivals.at_ms)
    service = np.asarray(arrivals.service_ms)
    latency = np.asarray(starts) - at + service
    kept = latency[int(requests * _WARMUP_RATIO) :]
    offered = rate_rps / 1e3 * float(np.mean(service_ms)) / load
    return SimulatedLoad(kept, offered, offered < 1.0 and not _is_growing(kept, service))


def _draw(
    service_ms: Floats, rate_rps: float, requests: int, gateways: int, seed: int
) -> _Arrivals:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1e3 / rate_rps, requests))
    return _Arrivals(
        at.tolist(),
        rng.choice(service_ms, requests).tolist(),
        rng.integers(0, gateways, requests).tolist(),
        rng.random(requests).tolist(),
    )


def _is_growing(latency: Floats, service: Floats) -> bool:
    """Tell a queue that grows all the time from one that has its ups and downs."""
    waits = latency - float(service.mean())
    quarters = [float(part.mean()) for part in np.array_split(waits, 4)]
    is_rising = all(a < b for a, b in itertools.pairwise(quarters))
    return is_rising and quarters[3] > _UNSTABLE_GROWTH * max(quarters[0], float(service.mean()))


def _central_queue(arrivals: _Arrivals, replicas: int, slots: int, gateways: int) -> list[float]:
    """One queue for all: whoever is free takes the oldest request."""
    del gateways
    free = [0.0] * (replicas * slots)
    starts = []
    for at, service in zip(arrivals.at_ms, arrivals.service_ms, strict=True):
        begin = max(at, free[0])
        heapq.heapreplace(free, begin + service)
        starts.append(begin)
    return starts


def _round_robin(arrivals: _Arrivals, replicas: int, slots: int, gateways: int) -> list[float]:
    """Each gateway takes the replicas in turn, whatever they are doing."""
    turns = [gateway * replicas // max(gateways, 1) for gateway in range(gateways)]

    def choose(gateway: int, dice: float) -> int:
        del dice
        turns[gateway] = (turns[gateway] + 1) % replicas
        return turns[gateway]

    return _serve_each(arrivals, replicas, slots, choose)


def _serve_each(
    arrivals: _Arrivals, replicas: int, slots: int, choose: Callable[[int, float], int]
) -> list[float]:
    queues = [[0.0] * slots for _ in range(replicas)]
    starts = []
    for at, service, gateway, dice in zip(
        arrivals.at_ms, arrivals.service_ms, arrivals.gateway, arrivals.dice, strict=True
    ):
        free = queues[choose(gateway, dice)]
        begin = max(at, free[0])
        heapq.heapreplace(free, begin + service)
        starts.append(begin)
    return starts


def _by_outstanding(
    arrivals: _Arrivals,
    replicas: int,
    slots: int,
    gateways: int,
    choose: Callable[[list[int], float], int],
) -> list[float]:
    """Play a policy that looks at how many requests its gateway has at each replica."""
    counts = [[0] * replicas for _ in range(gateways)]
    queues = [[0.0] * slots for _ in range(replicas)]
    leaving: list[tuple[float, int, int]] = []
    starts = []
    for at, service, gateway, dice in zip(
        arrivals.at_ms, arrivals.service_ms, arrivals.gateway, arrivals.dice, strict=True
    ):
        while leaving and leaving[0][0] <= at:
            _, sender, done = heapq.heappop(leaving)
            counts[sender][done] -= 1
        chosen = choose(counts[gateway], dice)
        counts[gateway][chosen] += 1
        begin = max(at, queues[chosen][0])
        heapq.heapreplace(queues[chosen], begin + service)
        heapq.heappush(leaving, (begin + service, gateway, chosen))
        starts.append(begin)
    return starts


def _least_outstanding(
    arrivals: _Arrivals, replicas: int, slots: int, gateways: int
) -> list[float]:
    """The replica to which the gateway has sent the fewest unanswered requests."""

    def choose(counts: list[int], dice: float) -> int:
        # Ties are broken at random, or several gateways would all crowd the first replica.
        first = int(dice * replicas)
        least = min(counts)
        try:
            return counts.index(least, first)
        except ValueError:
            return counts.index(least)

    return _by_outstanding(arrivals, replicas, slots, gateways, choose)


def _power_of_two(arrivals: _Arrivals, replicas: int, slots: int, gateways: int) -> list[float]:
    """The less loaded of two replicas chosen at random (Mitzenmacher 2001)."""

    def choose(counts: list[int], dice: float) -> int:
        if replicas == 1:
            return 0
        pair = int(dice * replicas * (replicas - 1))
        one, other = divmod(pair, replicas - 1)
        other += other >= one
        return other if counts[other] < counts[one] else one

    return _by_outstanding(arrivals, replicas, slots, gateways, choose)


_Play = Callable[[_Arrivals, int, int, int], list[float]]

POLICIES: dict[Policy, _Play] = {
    "central-queue": _central_queue,
    "least-outstanding": _least_outstanding,
    "power-of-two-choices": _power_of_two,
    "round-robin": _round_robin,
}
"""Policy → how it is played, the best informed one first."""


def pooled(loads: list[SimulatedLoad]) -> SimulatedLoad:
    """Put several runs of the same load together; unstable when any of them is."""
    return SimulatedLoad(
        np.concatenate([load.latency_ms for load in loads]),
        float(np.mean([load.utilisation for load in loads])),
        all(load.is_stable for load in loads),
    )


def erlang_c(offered: float, servers: int) -> float:
    """Return the chance that a request has to wait in an M/M/k queue (Erlang 1917).

    Args:
        offered: Arrival rate times mean service time, below `servers`.
        servers: Number of servers k.
    """
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    busy = offered / servers
    return blocked / (1 - busy + busy * blocked)
