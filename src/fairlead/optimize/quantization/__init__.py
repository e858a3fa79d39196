"""The skill quantization: card, config and its verb `quantize`."""

from fairlead.optimize.quantization.card import CARD
from fairlead.optimize.quantization.config import QuantizationConfig
from fairlead.optimize.quantization.skill import quantize

__all__ = ["CARD", "QuantizationConfig", "quantize"]
