"""The card of the pipelines skill."""

from __future__ import annotations

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="mlops-pipeline-automation",
    name="pipelines",
    concern="mlops",
    title="MLOps pipeline automation",
    does="Runs steps in order so that finished ones survive a crash and are never done twice.",
    verb="run_pipeline",
    command="fairlead run",
    takes="Plan",
    gives="PlanRun",
    symptoms=(
        "automate retraining",
        "ci/cd for models",
        "we deploy by hand",
        "a scheduled pipeline",
        "resume after a crash",
        "reproducible pipeline",
    ),
    extra="mlops",
    methods=("durable-execution",),
)
