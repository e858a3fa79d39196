"""What load tests and capacity plans come to."""

from __future__ import annotations

from fairlead.core.values import Value
from fairlead.measure.simulation import Policy

__all__ = ["LoadStep", "LoadTest", "PolicyForecast", "ScalingPlan"]


class LoadStep(Value):
    """One rate that a server was pressed with."""

    rate_rps: float
    """Requests per second that were meant to be sent."""
    achieved_rps: float
    """Requests per second that were answered."""
    requests: int
    p50_ms: float
    """Latency from the intended moment of sending, in milliseconds."""
    p95_ms: float
    p99_ms: float
    error_ratio: float
    """Requests that failed or were never sent, as a ratio."""
    is_sustained: bool
    """Whether the server kept up."""
    is_client_bound: bool
    """Whether the load generator, not the server, was too slow."""


class LoadTest(Value):
    """The rates that were tried, and the highest that was sustained."""

    url: str
    service: str
    steps: tuple[LoadStep, ...]
    """In the order in which they were tried."""
    saturation_rps: float | None
    """Highest sustained rate; None when even the lowest was too much."""
    is_limit_found: bool
    """Whether a higher rate was tried and not sustained."""


class PolicyForecast(Value):
    """What one balancing policy needs and gives."""

    policy: Policy
    replicas: int | None
    """Least number that meets the SLO; None when no considered number does."""
    p50_ms: float
    p99_ms: float
    utilisation: float
    """Busy time of the replicas as a ratio."""


class ScalingPlan(Value):
    """Replicas for a rate and a latency objective."""

    target_rps: float
    slo_p99_ms: float
    policy: Policy
    gateways: int
    replicas: int | None
    """Least number of replicas that meets the SLO; None when no considered number does."""
    replicas_with_spare: int | None
    """The same, plus those that may fail."""
    p50_ms: float
    """Forecast with the least number of replicas, in milliseconds."""
    p99_ms: float
    p99_low_ms: float
    """Least forecast over resampled service times."""
    p99_high_ms: float
    """Largest forecast over resampled service times."""
    p99_with_spare_ms: float
    """Forecast with the spare replicas working too."""
    utilisation: float
    mean_service_ms: float
    service_samples: int
    """Measured service times behind the forecast."""
    policies: tuple[PolicyForecast, ...]
    """Every policy in comparison, the best informed first."""
