"""The settings of the pipelines skill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config

__all__ = ["PipelineConfig"]


class PipelineConfig(Config):
    """How steps are executed, and how often a step that failed is tried again."""

    method: Literal["durable-execution"] = "durable-execution"
    """How results are kept: each one is stored before the next step begins."""
    attempts: int = Field(1, ge=1, le=20)
    """How often a step is tried before the run fails; errors in the input are tried once."""
    backoff_s: float = Field(1.0, ge=0, le=3600)
    """Pause before the second attempt, in seconds; doubled before each further one."""
