"""What debugging is for, as data."""

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="production-debugging-techniques",
    name="debugging",
    concern="observe",
    title="Production debugging techniques",
    does=(
        "Finds the slices of rows on which a model errs most, and the part of a request in "
        "which the time goes"
    ),
    verb="diagnose",
    command="fairlead observe debug",
    takes="Bundle and Dataset, or request times",
    gives="Diagnosis",
    symptoms=(
        "the model does not work in production",
        "some predictions are wrong",
        "requests are slow and nobody knows why",
        "find the root cause",
    ),
    extra="observe",
    methods=("slices", "latency"),
)
