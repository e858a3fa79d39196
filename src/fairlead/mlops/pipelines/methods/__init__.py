"""How the steps of a pipeline are executed."""

from __future__ import annotations

from fairlead.mlops.pipelines.methods.durable_execution import execute_durably

__all__ = ["METHODS"]

METHODS = {"durable-execution": execute_durably}
