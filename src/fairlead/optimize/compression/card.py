"""What compression is for, as data."""

from fairlead.core.card import SkillCard

__all__ = ["CARD"]

CARD = SkillCard(
    id="model-compression-techniques",
    name="compression",
    concern="optimize",
    title="Model compression techniques",
    does="Factorises, prunes, distils or thins out a model as far as an accuracy budget allows, "
    "tested on held-back rows",
    verb="compress",
    command="fairlead optimize compress",
    takes="Bundle",
    gives="Bundle",
    symptoms=(
        "the model has too many parameters",
        "the model must fit on a small device",
        "we need fewer multiplications per prediction",
        "a smaller model without training it again",
    ),
    extra="optimize",
    methods=(
        "low-rank",
        "tree-selection",
        "distillation",
        "structured-pruning",
        "sparsity",
        "layer-dropping",
        "head-dropping",
        "pipeline",
    ),
)
