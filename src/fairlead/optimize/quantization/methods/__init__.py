"""The published methods, by id."""

from fairlead.optimize.quantization.methods.dynamic_int8 import dynamic_int8
from fairlead.optimize.quantization.methods.fp8 import fp8
from fairlead.optimize.quantization.methods.half import bf16, fp16
from fairlead.optimize.quantization.methods.nncf_int8 import nncf_int8
from fairlead.optimize.quantization.methods.smoothquant import smoothquant
from fairlead.optimize.quantization.methods.static_int8 import static_int8
from fairlead.optimize.quantization.methods.weight_only import weight_int4, weight_int8

__all__ = ["METHODS"]

METHODS = {
    "dynamic-int8": dynamic_int8,
    "static-int8": static_int8,
    "smoothquant": smoothquant,
    "nncf-int8": nncf_int8,
    "weight-int8": weight_int8,
    "weight-int4": weight_int4,
    "fp16": fp16,
    "bf16": bf16,
    "fp8": fp8,
}
"""Method → function that turns a model on the bench into recipes; none when it does not apply."""
