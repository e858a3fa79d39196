"""The card of the tracking skill."""

from __future__ import annotations

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="experiment-tracking-and-versioning",
    name="tracking",
    concern="mlops",
    title="Experiment tracking and versioning",
    does="Records what a run was made of and names model versions that can never vanish.",
    verb="track",
    command="fairlead mlops track run",
    takes="Command",
    gives="Run",
    symptoms=(
        "which model is in production",
        "cannot reproduce a result",
        "what changed between two runs",
        "compare experiments",
        "model registry",
        "audit trail",
    ),
    extra="mlops",
    methods=("git-snapshot",),
)
