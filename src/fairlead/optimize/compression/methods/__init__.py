"""The published methods, by id."""

from fairlead.optimize.compression.methods.low_rank import LowRankModel, LowRankSearch, low_rank

__all__ = ["METHODS", "LowRankModel", "LowRankSearch"]

METHODS = {"low-rank": low_rank}
"""Method → function that finds the smallest model that passes a judge."""
