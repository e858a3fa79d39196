"""The ten skills, in data-flow order.

A card is loaded when it is asked for: naming the command of one skill does not import the others.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from fairlead.core.card import SkillCard
from fairlead.core.errors import UsageError

if TYPE_CHECKING:
    CARDS: tuple[SkillCard, ...]

__all__ = ["CARDS", "find_card"]

_PLACES: Final = {
    "experiment-tracking-and-versioning": "mlops.tracking",
    "mlops-pipeline-automation": "mlops.pipelines",
    "hardware-optimization-strategies": "optimize.hardware",
    "quantization-for-inference": "optimize.quantization",
    "model-compression-techniques": "optimize.compression",
    "model-serving-patterns": "serve.inference",
    "deployment-strategies": "serve.rollout",
    "scaling-and-load-balancing": "serve.scaling",
    "production-monitoring-and-alerting": "observe.monitoring",
    "production-debugging-techniques": "observe.debugging",
}
"""Package of every skill, in the order in which work usually happens."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the type is declared above)
    if name == "CARDS":
        return tuple(find_card(skill_id) for skill_id in _PLACES)
    raise AttributeError(f"module 'fairlead.catalog' has no attribute {name!r}")


@lru_cache
def find_card(skill_id: str) -> SkillCard:
    """Return the card of a skill.

    Raises:
        UsageError: There is no such skill; the hint lists the ten.
    """
    if skill_id not in _PLACES:
        raise UsageError(
            f"there is no skill `{skill_id}`", hint=f"the skills are {', '.join(_PLACES)}"
        )
    card = import_module(f"fairlead.{_PLACES[skill_id]}.card").CARD
    return SkillCard.model_validate(card)
