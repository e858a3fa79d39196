"""In which order skills are done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fairlead.router.answers import SkillId

__all__ = ["SHORT", "in_order"]

SHORT: Final[dict[str, SkillId]] = {
    "quantization": "quantization-for-inference",
    "compression": "model-compression-techniques",
    "hardware": "hardware-optimization-strategies",
    "serving": "model-serving-patterns",
    "rollout": "deployment-strategies",
    "scaling": "scaling-and-load-balancing",
    "tracking": "experiment-tracking-and-versioning",
    "automation": "mlops-pipeline-automation",
    "monitoring": "production-monitoring-and-alerting",
    "debugging": "production-debugging-techniques",
}
"""Short names of the skills, as the lexicon uses them."""

# Track before automating; optimise, serve, roll out, scale, watch, repair.
_ORDER: Final[tuple[str, ...]] = (
    "tracking", "automation", "hardware", "quantization", "compression", "serving", "rollout",
    "scaling", "monitoring", "debugging",
)  # fmt: skip
# What is seen in production feeds the next training: see it, retrain, release again.
_ORDER_AFTER_DRIFT: Final[tuple[str, ...]] = (
    "tracking", "hardware", "quantization", "compression", "serving", "scaling", "monitoring",
    "debugging", "automation", "rollout",
)  # fmt: skip
_OPTIMISERS: Final = frozenset({"hardware", "quantization", "compression"})


def in_order(skills: Iterable[str], *, after_drift: bool = False) -> tuple[SkillId, ...]:
    """Return skills, given by their short names, in the order in which they are done.

    Among the three that make a model smaller or faster the order of mention is kept.

    Examples:
        >>> in_order(["monitoring", "serving"])
        ('model-serving-patterns', 'production-monitoring-and-alerting')
    """
    given = list(dict.fromkeys(skills))
    order = _ORDER_AFTER_DRIFT if after_drift else _ORDER
    first = min(order.index(name) for name in _OPTIMISERS)
    place = {name: (order.index(name), 0) for name in given}
    place |= {name: (first, at) for at, name in enumerate(given) if name in _OPTIMISERS}
    return tuple(SHORT[name] for name in sorted(given, key=lambda name: place[name]))
