"""What monitoring is for, as data."""

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="production-monitoring-and-alerting",
    name="monitoring",
    concern="observe",
    title="Production monitoring and alerting",
    does=(
        "Compares what a model sees and says with its reference profile, names what shifted, "
        "and writes alert rules for service levels"
    ),
    verb="monitor",
    command="fairlead observe monitor",
    takes="Bundle and PredictionBatch or Dataset",
    gives="Signal",
    symptoms=(
        "detect drift",
        "the model degrades over time",
        "alert on failures",
        "monitor production",
        "set up alerts and service levels",
    ),
    extra="observe",
    methods=("calibrated-union",),
)
