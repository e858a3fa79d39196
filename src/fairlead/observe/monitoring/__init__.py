"""The skill monitoring: card, config and its verb `monitor`."""

from fairlead.observe.monitoring.card import CARD
from fairlead.observe.monitoring.config import MonitoringConfig
from fairlead.observe.monitoring.skill import monitor

__all__ = ["CARD", "MonitoringConfig", "monitor"]
