"""The settings of the tracking skill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.values import Config

__all__ = ["TrackingConfig"]


class TrackingConfig(Config):
    """What is captured of a run, and how much of it."""

    experiment: str = Field("default", min_length=1, max_length=200)
    """The experiment the run belongs to."""
    name: str = Field("", max_length=200)
    """Name of the run for people; its id when empty."""
    method: Literal["git-snapshot"] = "git-snapshot"
    """How the code is captured: commit, difference to it, and files git does not know."""
    env_names: tuple[str, ...] = ()
    """Further environment variables to record, by name; all others stay unrecorded."""
    max_file_mb: float = Field(10.0, ge=0)
    """Largest single file whose content is stored, in MB; a larger one is only listed."""
    max_total_mb: float = Field(100.0, ge=0)
    """Most content that is stored for one run, in MB; the rest is only listed."""
    tail_kb: int = Field(64, ge=0, le=10_000)
    """How much of the end of each output stream is kept, in kB."""
