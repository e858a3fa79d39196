"""Ways to decide a rollout."""

from __future__ import annotations

from fairlead.serve.rollout.methods.conditional_betting import ConditionalBetting

__all__ = ["METHODS", "ConditionalBetting"]

METHODS = {"conditional-betting": ConditionalBetting}
"""Method id → what watches the guardrail metrics."""
