"""Settings of load tests and capacity plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config
from fairlead.measure.simulation import Policy

__all__ = ["LoadConfig", "ScalingConfig"]


class ScalingConfig(Config):
    """What the service must withstand, and how its replicas are simulated."""

    method: Literal["trace-driven-simulation"] = "trace-driven-simulation"
    """How latency is forecast."""
    target_rps: float = Field(100.0, gt=0, le=1e6)
    """Requests per second at peak."""
    slo_p99_ms: float = Field(100.0, gt=0)
    """Latency in milliseconds that 99 of 100 requests must stay under."""
    policy: Policy = "least-outstanding"
    """How requests are spread over the replicas."""
    gateways: int = Field(1, ge=1, le=64)
    """Load balancers side by side, each knowing only the requests that it sent itself."""
    slots_per_replica: int = Field(1, ge=1, le=256)
    """Requests that one replica works on at the same time."""
    capacity_rps: float | None = Field(None, gt=0)
    """Measured saturation of one replica; service times are stretched to fit it."""
    spare_replicas: int = Field(1, ge=0, le=16)
    """Replicas that may fail while the SLO still holds."""
    max_replicas: int = Field(512, ge=1, le=4096)
    """Most replicas that are considered."""
    requests: int = Field(20_000, ge=1000, le=1_000_000)
    """Simulated requests per run."""
    runs: int = Field(3, ge=1, le=50)
    """Simulated runs behind a forecast, each with its own arrivals."""
    seed: int = Field(0, ge=0)
    """Seed of arrivals, service times and choices."""


class LoadConfig(Config):
    """How hard a server is pressed."""

    rate_rps: float = Field(50.0, gt=0, le=1e5)
    """Requests per second of the first step."""
    search: bool = True
    """Whether the rate is raised until the server no longer keeps up."""
    step_seconds: float = Field(2.0, gt=0, le=600)
    """Time in seconds that each rate is held."""
    max_steps: int = Field(12, ge=1, le=100)
    """Most rates that are tried."""
    max_seconds: float = Field(60.0, gt=0, le=3600)
    """Time in seconds after which no further rate is tried."""
    max_p99_ms: float | None = Field(None, gt=0)
    """p99 latency in milliseconds beyond which a rate counts as too high; None leaves the growing
    queue alone to tell."""
    max_error_ratio: float = Field(0.01, ge=0, lt=1)
    """Failed requests beyond which a rate counts as too high."""
    connections: int = Field(64, ge=1, le=1024)
    """Most requests under way at the same time."""
    timeout_s: float = Field(10.0, gt=0, le=600)
    """Time in seconds after which a request counts as failed."""
    seed: int = Field(0, ge=0)
    """Seed of the arrival times."""
