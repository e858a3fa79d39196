"""Deployment strategies, as data."""

from __future__ import annotations

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="deployment-strategies",
    name="rollout",
    concern="serve",
    title="Deployment strategies",
    does="Give a candidate a growing share of the traffic and promote it, roll it back or hold it",
    verb="roll_out",
    command="fairlead serve rollout canary",
    takes="Endpoint",
    gives="Decision",
    symptoms=(
        "I am afraid to replace the model that runs",
        "the new version broke production",
        "canary, shadow or A/B test for a model",
        "how do I roll back",
        "zero downtime deployment",
    ),
    extra="serve",
    methods=("conditional-betting",),
)
