"""The skill debugging: card, config and its verb `diagnose`."""

from fairlead.observe.debugging.card import CARD
from fairlead.observe.debugging.config import DebuggingConfig
from fairlead.observe.debugging.diagnosis import Diagnosis, TimePart
from fairlead.observe.debugging.methods.latency import ServiceTimes, times_of_predictions
from fairlead.observe.debugging.skill import diagnose, diagnose_latency, diagnose_slices

__all__ = [
    "CARD",
    "DebuggingConfig",
    "Diagnosis",
    "ServiceTimes",
    "TimePart",
    "diagnose",
    "diagnose_latency",
    "diagnose_slices",
    "times_of_predictions",
]
