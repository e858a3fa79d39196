"""The published methods, by id."""

from fairlead.optimize.hardware.methods.successive_halving import (
    BatchStep,
    Tournament,
    grow_batch,
    successive_halving,
)

__all__ = ["METHODS", "BatchStep", "Tournament", "grow_batch"]

METHODS = {"successive-halving": successive_halving}
"""Method → function that finds the best of several runtime settings."""
