"""Tracking: what a run was made of, and names for the models that came out of it."""

from fairlead.mlops.tracking.card import CARD
from fairlead.mlops.tracking.config import TrackingConfig

__all__ = ["CARD", "TrackingConfig"]
