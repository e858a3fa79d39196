"""The ten skills, in data-flow order."""

from __future__ import annotations

from typing import Final

from fairlead.core.card import SkillCard
from fairlead.core.errors import UsageError
from fairlead.mlops.pipelines.card import CARD as PIPELINES
from fairlead.mlops.tracking.card import CARD as TRACKING
from fairlead.observe.debugging.card import CARD as DEBUGGING
from fairlead.observe.monitoring.card import CARD as MONITORING
from fairlead.optimize.compression.card import CARD as COMPRESSION
from fairlead.optimize.hardware.card import CARD as HARDWARE
from fairlead.optimize.quantization.card import CARD as QUANTIZATION
from fairlead.serve.inference.card import CARD as INFERENCE
from fairlead.serve.rollout.card import CARD as ROLLOUT
from fairlead.serve.scaling.card import CARD as SCALING

__all__ = ["CARDS", "find_card"]

CARDS: Final[tuple[SkillCard, ...]] = (
    TRACKING,
    PIPELINES,
    HARDWARE,
    QUANTIZATION,
    COMPRESSION,
    INFERENCE,
    ROLLOUT,
    SCALING,
    MONITORING,
    DEBUGGING,
)
"""Every skill once, in the order in which work usually happens."""


def find_card(skill_id: str) -> SkillCard:
    """Return the card of a skill.

    Raises:
        UsageError: There is no such skill; the hint lists the ten.
    """
    for card in CARDS:
        if card.id == skill_id:
            return card
    raise UsageError(
        f"there is no skill `{skill_id}`", hint=f"the skills are {', '.join(c.id for c in CARDS)}"
    )
