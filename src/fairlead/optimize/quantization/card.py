"""What quantization is for, as data."""

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="quantization-for-inference",
    name="quantization",
    concern="optimize",
    title="Quantization for inference",
    does="Stores and computes in 4, 8 or 16 bits what an accuracy budget allows, tested on "
    "held-back rows",
    verb="quantize",
    command="fairlead optimize quantize",
    takes="Bundle",
    gives="Bundle",
    symptoms=(
        "the model is too large",
        "inference is too slow on CPU",
        "the model does not fit in memory",
        "serving costs too much per request",
    ),
    extra="optimize",
    methods=(
        "dynamic-int8",
        "static-int8",
        "smoothquant",
        "nncf-int8",
        "weight-int8",
        "weight-int4",
        "fp16",
        "bf16",
        "fp8",
    ),
)
