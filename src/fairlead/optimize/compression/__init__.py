"""The skill compression: card, config and its verb `compress`."""

from fairlead.optimize.compression.card import CARD
from fairlead.optimize.compression.config import CompressionConfig
from fairlead.optimize.compression.skill import compress

__all__ = ["CARD", "CompressionConfig", "compress"]
