"""Scaling and load balancing: load tests, and replicas for an SLO."""

from fairlead.serve.scaling.card import CARD
from fairlead.serve.scaling.config import LoadConfig, ScalingConfig
from fairlead.serve.scaling.load_test import check_loopback, measure_service_ms, press
from fairlead.serve.scaling.plan import LoadStep, LoadTest, PolicyForecast, ScalingPlan
from fairlead.serve.scaling.report import load_outcome
from fairlead.serve.scaling.skill import scale

__all__ = [
    "CARD",
    "LoadConfig",
    "LoadStep",
    "LoadTest",
    "PolicyForecast",
    "ScalingConfig",
    "ScalingPlan",
    "check_loopback",
    "load_outcome",
    "measure_service_ms",
    "press",
    "scale",
]
