"""The published methods, by id."""

from collections.abc import Callable

from fairlead.optimize.compression.bench import Bench, Found
from fairlead.optimize.compression.methods.distillation import distillation
from fairlead.optimize.compression.methods.head_dropping import head_dropping
from fairlead.optimize.compression.methods.layer_dropping import layer_dropping
from fairlead.optimize.compression.methods.low_rank import low_rank
from fairlead.optimize.compression.methods.pipeline import pipeline
from fairlead.optimize.compression.methods.sparsity import sparsity
from fairlead.optimize.compression.methods.structured_pruning import structured_pruning
from fairlead.optimize.compression.methods.tree_selection import tree_selection

__all__ = ["METHODS"]

METHODS: dict[str, Callable[[Bench], Found]] = {
    "low-rank": low_rank,
    "tree-selection": tree_selection,
    "distillation": distillation,
    "structured-pruning": structured_pruning,
    "sparsity": sparsity,
    "layer-dropping": layer_dropping,
    "head-dropping": head_dropping,
    "pipeline": pipeline,
}
"""Method → function that finds the smallest versions of the model on a bench."""
