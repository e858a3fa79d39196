"""The skill hardware: card, config and its verb `tune`."""

from fairlead.optimize.hardware.card import CARD
from fairlead.optimize.hardware.config import HardwareConfig
from fairlead.optimize.hardware.skill import tune

__all__ = ["CARD", "HardwareConfig", "tune"]
