"""How a rollout ends."""

from __future__ import annotations

from typing import Literal

from fairlead.core.values import Value

__all__ = ["Decision", "Guardrail"]


class Guardrail(Value):
    """One guardrail metric of a rollout and what was seen of it."""

    metric: str
    baseline_events: int
    candidate_events: int
    baseline_total: int
    candidate_total: int
    harm_e_value: float
    """Evidence that the candidate is worse; at 1/alpha the rollout rolls back."""
    safe_e_value: float
    """Evidence that the candidate is not worse by more than the margin."""


class Decision(Value):
    """What became of the candidate."""

    action: Literal["promote", "roll-back", "hold"]
    reason: str
    baseline: str
    """Digest of the baseline bundle."""
    candidate: str
    """Digest of the candidate bundle."""
    requests: int
    """Requests the candidate answered before the decision."""
    guardrails: tuple[Guardrail, ...]
