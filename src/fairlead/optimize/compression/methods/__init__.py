"""The published methods, by id."""

from fairlead.optimize.compression.methods.dense_distillation import dense_distillation
from fairlead.optimize.compression.methods.low_rank import low_rank
from fairlead.optimize.compression.methods.tree_selection import tree_selection

__all__ = ["METHODS"]

METHODS = {
    "low-rank": low_rank,
    "tree-selection": tree_selection,
    "distillation": dense_distillation,
}
"""Method → function that finds the smallest versions of the model on a bench."""
