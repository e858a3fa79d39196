"""Scaling and load balancing, as data."""

from __future__ import annotations

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="scaling-and-load-balancing",
    name="scaling",
    concern="serve",
    title="Scaling and load balancing",
    does="Find what a server can take, and how many replicas and which balancing meet an SLO",
    verb="scale",
    command="fairlead serve scale plan",
    takes="Endpoint",
    gives="ScalingPlan",
    symptoms=(
        "traffic grows and latency explodes",
        "how many replicas do I need",
        "requests queue up at peak hours",
        "one replica is overloaded while others idle",
        "autoscaling is too slow",
    ),
    extra="scale",
    methods=("trace-driven-simulation",),
)
