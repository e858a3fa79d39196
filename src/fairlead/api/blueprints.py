"""How each skill becomes a step of a plan: its id, its settings, its gate and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from fairlead.core.comparison import ComparisonGate
from fairlead.core.errors import PlanError
from fairlead.core.values import Config

__all__ = [
    "BLUEPRINTS",
    "CANDIDATE_MAKERS",
    "Blueprint",
    "MonitorStepConfig",
    "PackStepConfig",
    "RegisterStepConfig",
    "ReleaseStepConfig",
    "ServeStepConfig",
    "blueprint_of",
    "check_settings",
]


class PackStepConfig(Config):
    """Settings of the step that evaluates the model and packs it."""

    name: str = "model"
    """Name of the model, also the name of the service."""
    features: tuple[str, ...] = ()
    """Columns of the model's single input, in order; empty finds them."""
    trust: bool = False
    """Whether code or pickles that came with the model may run."""


class ServeStepConfig(Config):
    """Settings of the step that serves the bundle and sends it real requests."""

    http_port: int = Field(0, ge=0, le=65535)
    """Port of the server on the loopback address; 0 takes a free one."""
    requests: int = Field(200, ge=1, le=100_000)
    """Single-row requests sent to prove that it answers as the bundle does."""


class RegisterStepConfig(Config):
    """Settings of the step that records the run and registers the bundle."""

    experiment: str = "production"
    """Experiment that the run is filed under."""
    alias: str = "baseline"
    """Alias that points at the registered version."""


class ReleaseStepConfig(ComparisonGate):
    """Settings of the step that automates the way from a new bundle to the registered champion."""

    alias: str = "champion"
    """Alias that moves to the new version when it is not worse than the current one."""
    max_drop: float = Field(0.01, ge=0, le=1)
    """Largest loss of quality against the champion on the same rows, as a ratio."""


class MonitorStepConfig(Config):
    """Settings of the step that watches the served predictions."""

    stream: str | None = None
    """Rows to send through the service and watch; None sends the plan's own rows and then, as a
    drill, the same rows with a planted shift that the alert has to find."""
    max_rows: int = Field(2000, ge=50, le=1_000_000)
    """Most rows that are sent."""
    drill_shift: float = Field(1.0, gt=0, le=10)
    """Size of the planted shift, in reference standard deviations."""
    slo_availability: float = Field(0.999, gt=0, lt=1)
    """Share of requests that must be answered, for the alert rules."""
    slo_latency_ms: float = Field(250.0, gt=0)
    """Latency that the alert rules hold requests to."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How one skill becomes a step.

    Attributes:
        id: Id of the step.
        uses: Id of the skill, or `pack`.
        gives: What the step leaves.
        why: Reason when the planner adds it on its own.
        config: Returns the class that checks the settings; loaded when needed.
        settings: What a fresh plan writes down; the rest are defaults.
    """

    id: str
    uses: str
    gives: str
    why: str
    config: Callable[[], type[Config]]
    settings: Mapping[str, Any]


def _quantization() -> type[Config]:
    from fairlead.optimize.quantization import QuantizationConfig

    return QuantizationConfig


def _compression() -> type[Config]:
    from fairlead.optimize.compression import CompressionConfig

    return CompressionConfig


def _hardware() -> type[Config]:
    from fairlead.optimize.hardware import HardwareConfig

    return HardwareConfig


def _rollout() -> type[Config]:
    from fairlead.serve.rollout import RolloutConfig

    return RolloutConfig


def _scaling() -> type[Config]:
    from fairlead.serve.scaling import ScalingConfig

    return ScalingConfig


def _debugging() -> type[Config]:
    from fairlead.observe.debugging import DebuggingConfig

    return DebuggingConfig


BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    Blueprint(
        "pack", "pack", "the baseline bundle, with scores and reference profile",
        "every later step needs the model, its scores and its reference profile in one package",
        lambda: PackStepConfig, {},
    ),
    Blueprint(
        "track", "experiment-tracking-and-versioning",
        "a recorded run and a registered version with an alias", "", lambda: RegisterStepConfig,
        {"experiment": "production", "alias": "baseline"},
    ),
    Blueprint(
        "quantize", "quantization-for-inference", "a smaller bundle, or the same one",
        "a rollout compares two versions, so a smaller and faster candidate is made first",
        _quantization, {"method": "dynamic-int8", "max_drop": 0.01},
    ),
    Blueprint(
        "compress", "model-compression-techniques", "a bundle with fewer weights, or the same one",
        "", _compression, {"method": "low-rank", "max_drop": 0.01},
    ),
    Blueprint(
        "tune", "hardware-optimization-strategies",
        "the same model with measured threads and batch size",
        "serving obeys settings that were measured on this machine", _hardware, {},
    ),
    Blueprint(
        "serve", "model-serving-patterns", "a service that answers like the bundle", "",
        lambda: ServeStepConfig, {"http_port": 0, "requests": 200},
    ),
    Blueprint(
        "roll-out", "deployment-strategies", "the decision: promote, roll back or hold", "",
        _rollout, {"alpha": 0.01, "latency_tolerance_ratio": 0.5},
    ),
    Blueprint(
        "scale", "scaling-and-load-balancing", "replicas for the target rate and latency", "",
        _scaling, {"target_rps": 100.0, "slo_p99_ms": 100.0},
    ),
    Blueprint(
        "monitor", "production-monitoring-and-alerting",
        "alert rules, and the verdict on the watched stream", "", lambda: MonitorStepConfig,
        {"max_rows": 2000, "slo_availability": 0.999, "slo_latency_ms": 250.0},
    ),
    Blueprint(
        "debug", "production-debugging-techniques",
        "where a request's time goes, and the worst slices", "", _debugging, {},
    ),
    Blueprint(
        "release", "mlops-pipeline-automation",
        "a champion that only a version as good can replace", "", lambda: ReleaseStepConfig,
        {"alias": "champion", "max_drop": 0.01},
    ),
)  # fmt: skip

CANDIDATE_MAKERS: Final = (
    "quantization-for-inference",
    "model-compression-techniques",
    "hardware-optimization-strategies",
)
"""Skills whose bundle can be the candidate of a rollout."""


def blueprint_of(uses: str) -> Blueprint:
    """Return how a skill becomes a step.

    Raises:
        PlanError: No step uses that id; the hint lists the ids.
    """
    for blueprint in BLUEPRINTS:
        if blueprint.uses == uses:
            return blueprint
    raise PlanError(
        f"a step uses `{uses}`, which is no skill",
        hint=f"use one of {', '.join(b.uses for b in BLUEPRINTS)}",
    )


def check_settings(uses: str, settings: Mapping[str, Any]) -> Config:
    """Check the settings of a step and return them as the config of its skill.

    Raises:
        PlanError: No step uses that id.
        ConfigError: A setting is unknown or out of range.
    """
    return blueprint_of(uses).config().parse(settings)
