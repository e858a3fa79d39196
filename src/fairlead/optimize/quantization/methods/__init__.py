"""The published methods, by id."""

from fairlead.optimize.quantization.methods.dynamic_int8 import Recipe, dynamic_int8

__all__ = ["METHODS", "Recipe"]

METHODS = {"dynamic-int8": dynamic_int8}
"""Method → function that turns a model file into recipes; empty when nothing can be quantized."""
