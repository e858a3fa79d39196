"""Ways to forecast what replicas are needed."""

from __future__ import annotations

from fairlead.serve.scaling.methods.trace_driven_simulation import Search, plan_replicas

__all__ = ["METHODS", "Search", "plan_replicas"]

METHODS = {"trace-driven-simulation": plan_replicas}
"""Method id → what finds the least number of replicas."""
