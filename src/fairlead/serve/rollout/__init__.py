"""Deployment strategies: canary rollouts that decide on evidence."""

from fairlead.serve.rollout.card import CARD
from fairlead.serve.rollout.config import RolloutConfig
from fairlead.serve.rollout.journal import RolloutJournal, RolloutState
from fairlead.serve.rollout.replay import ReplayTraffic
from fairlead.serve.rollout.report import state_report
from fairlead.serve.rollout.skill import refuse_stored, roll_out, steer
from fairlead.serve.rollout.target import Judgement, LiveTraffic, RolloutTarget, Traffic

__all__ = [
    "CARD",
    "Judgement",
    "LiveTraffic",
    "ReplayTraffic",
    "RolloutConfig",
    "RolloutJournal",
    "RolloutState",
    "RolloutTarget",
    "Traffic",
    "refuse_stored",
    "roll_out",
    "state_report",
    "steer",
]
