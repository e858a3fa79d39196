"""The only way in: ten verbs, `ask`, `plan` and `follow`."""

from __future__ import annotations

from fairlead.api.context import Context
from fairlead.api.plan_file import read_plan, write_plan
from fairlead.api.planning import plan
from fairlead.api.routing import ask

__all__ = ["Context", "ask", "plan", "read_plan", "write_plan"]
