"""Replicas for an SLO, by simulating the policy on measured service times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fairlead.core.errors import DataError
from fairlead.core.ports import Progress
from fairlead.measure.simulation import POLICIES, Policy, SimulatedLoad, pooled, simulate
from fairlead.serve.scaling.config import ScalingConfig
from fairlead.serve.scaling.plan import PolicyForecast, ScalingPlan

__all__ = ["Search", "plan_replicas"]

Floats = NDArray[np.float64]

_RESAMPLES = 8


@dataclass
class Search:
    """Looks for the least number of replicas of one policy, and remembers what it tried.

    Attributes:
        points: Replicas → what the simulation gave.
    """

    service_ms: Floats
    config: ScalingConfig
    policy: Policy
    points: dict[int, SimulatedLoad] = field(default_factory=dict)

    def play(self, replicas: int) -> SimulatedLoad:
        """Simulate a number of replicas, once."""
        if replicas not in self.points:
            self.points[replicas] = _play(self.service_ms, self.config, self.policy, replicas)
        return self.points[replicas]

    def meets(self, replicas: int) -> bool:
        """Whether the SLO holds."""
        return self.play(replicas).percentile(99) <= self.config.slo_p99_ms

    def least(self) -> int | None:
        """Return the least number that meets the SLO, or None."""
        config = self.config
        offered = config.target_rps / 1e3 * float(self.service_ms.mean()) / config.slots_per_replica
        low = math.floor(offered)
        if low >= config.max_replicas:
            return None
        step, high = 1, low + 1
        while not self.meets(high):
            if high >= config.max_replicas:
                return None
            low, step = high, step * 2
            high = min(high + step, config.max_replicas)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.meets(middle) else (middle, high)
        return high


def _play(
    service_ms: Floats, config: ScalingConfig, policy: Policy, replicas: int
) -> SimulatedLoad:
    runs = [
        simulate(
            service_ms,
            rate_rps=config.target_rps,
            replicas=replicas,
            policy=policy,
            requests=config.requests,
            slots=config.slots_per_replica,
            gateways=config.gateways,
            seed=config.seed + run,
        )
        for run in range(config.runs)
    ]
    return pooled(runs)


def plan_replicas(
    service_ms: Floats, config: ScalingConfig, progress: Progress
) -> tuple[ScalingPlan, dict[Policy, Search]]:
    """Find the least number of replicas for every policy.

    Args:
        service_ms: Measured service times in ms, shape (n,).
        config: Target, SLO and policy.
        progress: Hears how far it is.

    Returns:
        The plan for the chosen policy, and the searches of all policies.

    Raises:
        DataError: The sample is too small, or holds times that are not positive.
    """
    sample = _fitted(service_ms, config)
    searches = {policy: Search(sample, config, policy) for policy in POLICIES}
    progress.begin("simulating policies", len(searches))
    found: dict[Policy, int | None] = {}
    is_possible = float(np.percentile(sample, 99)) <= config.slo_p99_ms
    for policy, search in searches.items():
        found[policy] = search.least() if is_possible else None
        progress.advance()
    forecasts = tuple(_forecast(policy, searches[policy], found[policy]) for policy in searches)
    return _plan(sample, config, searches[config.policy], found[config.policy], forecasts), searches


def _fitted(service_ms: Floats, config: ScalingConfig) -> Floats:
    sample = np.asarray(service_ms, np.float64)
    if len(sample) < 30:
        raise DataError(
            f"{len(sample)} service times are too few for a forecast",
            hint="give at least 30; 2,000 halve the error once more",
        )
    if not np.isfinite(sample).all() or (sample <= 0).any():
        raise DataError(
            "a service time is not a positive number",
            hint="give milliseconds, one per request, without failed requests",
        )
    if config.capacity_rps is None:
        return sample
    wanted_ms = config.slots_per_replica * 1e3 / config.capacity_rps
    return np.asarray(sample * (wanted_ms / float(sample.mean())))


def _forecast(policy: Policy, search: Search, replicas: int | None) -> PolicyForecast:
    if replicas is None:
        return PolicyForecast(
            policy=policy, replicas=None, p50_ms=math.inf, p99_ms=math.inf, utilisation=0.0
        )
    load = search.play(replicas)
    return PolicyForecast(
        policy=policy,
        replicas=replicas,
        p50_ms=load.percentile(50),
        p99_ms=load.percentile(99),
        utilisation=load.utilisation,
    )


def _plan(
    sample: Floats,
    config: ScalingConfig,
    search: Search,
    replicas: int | None,
    forecasts: tuple[PolicyForecast, ...],
) -> ScalingPlan:
    own = next(item for item in forecasts if item.policy == config.policy)
    total = None if replicas is None else replicas + config.spare_replicas
    low, high = (math.inf, math.inf) if replicas is None else _range(sample, config, replicas)
    return ScalingPlan(
        target_rps=config.target_rps,
        slo_p99_ms=config.slo_p99_ms,
        policy=config.policy,
        gateways=config.gateways,
        replicas=replicas,
        replicas_with_spare=total,
        p50_ms=own.p50_ms,
        p99_ms=own.p99_ms,
        p99_low_ms=min(low, own.p99_ms),
        p99_high_ms=max(high, own.p99_ms),
        p99_with_spare_ms=math.inf if total is None else search.play(total).percentile(99),
        utilisation=own.utilisation,
        mean_service_ms=float(sample.mean()),
        service_samples=len(sample),
        policies=forecasts,
    )


def _range(sample: Floats, config: ScalingConfig, replicas: int) -> tuple[float, float]:
    """Return how far the forecast moves when the service times are drawn again (bootstrap)."""
    rng = np.random.default_rng(config.seed)
    found = []
    for _ in range(_RESAMPLES):
        again = rng.choice(sample, len(sample))
        found.append(_play(again, config, config.policy, replicas).percentile(99))
    return min(found), max(found)
