"""What hardware tuning is for, as data."""

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="hardware-optimization-strategies",
    name="hardware",
    concern="optimize",
    title="Hardware optimization strategies",
    does="Measures threads, graph level and batch size on this machine, and says whether the "
    "model or the infrastructure is slow",
    verb="tune",
    command="fairlead optimize tune",
    takes="Bundle",
    gives="Bundle",
    symptoms=(
        "the model runs slower in production than on my machine",
        "which batch size and how many threads should it use",
        "the CPU is not used well",
        "is it the model or the infrastructure that is slow",
    ),
    extra="optimize",
    methods=("successive-halving",),
)
