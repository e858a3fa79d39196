"""Runs of experiments and versions of models: what tracking remembers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import ConfigDict, Field

from fairlead.core.bundle import Provenance, Scores
from fairlead.core.values import Value

__all__ = ["CodeState", "MetricPoint", "ModelVersion", "Run", "RunFile", "RunStatus"]

_ALL_NUMBERS = ConfigDict(ser_json_inf_nan="constants")

RunStatus = Literal["running", "done", "failed", "interrupted"]
"""`interrupted`: the process that recorded the run died before the run ended."""


class RunFile(Value):
    """One file that belongs to a run."""

    role: Literal["input", "output", "artifact", "untracked", "diff"]
    path: str
    """As the user wrote it, or relative to the root of the repository."""
    size_bytes: int
    digest: str = ""
    """`sha256:…`; empty when the file was too large to read."""
    is_stored: bool = False
    """Whether its content is in the artifact store under its digest."""
    reason: str = ""
    """Why its content was not stored, when it was not."""


class CodeState(Value):
    """The code a run was made with."""

    root: str = ""
    """Top folder of the git repository; empty when there is none."""
    commit: str | None = None
    branch: str | None = None
    is_dirty: bool = False
    """Whether tracked files differ from the commit, or files exist that git does not know."""
    diff: RunFile | None = None
    """The difference between the commit and the tracked files, as `git apply` takes it."""
    untracked: tuple[RunFile, ...] = ()
    """Files that git neither tracks nor ignores."""
    note: str = ""
    """What could not be captured, and why."""


class MetricPoint(Value):
    """One value of a metric; NaN and infinity are values too, a run may diverge."""

    model_config = _ALL_NUMBERS

    name: str
    value: float
    step: int | None = None
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Run(Value):
    """One execution of a command or of a block of code, and everything it was made of."""

    model_config = _ALL_NUMBERS

    id: str
    experiment: str
    name: str
    status: RunStatus
    started_at: datetime
    ended_at: datetime | None = None
    command: tuple[str, ...] = ()
    """Program and arguments; values that look like secrets are replaced by `***`."""
    folder: str = ""
    """Working directory."""
    exit_code: int | None = None
    """Negative: the number of the signal that ended the command."""
    params: Mapping[str, str] = {}
    metrics: Mapping[str, float] = {}
    """Last value of each metric."""
    code: CodeState = CodeState()
    files: tuple[RunFile, ...] = ()
    """Inputs, outputs and artifacts."""
    python: str = ""
    packages: Mapping[str, str] = {}
    """Installed distributions of the interpreter that ran the command: name → version."""
    environment: Mapping[str, str] = {}
    """The machine, and the environment variables on the list of allowed names."""
    stdout_tail: str = ""
    stderr_tail: str = ""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    host: str = ""
    pid: int = 0

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end; None while it runs."""
        return (self.ended_at - self.started_at).total_seconds() if self.ended_at else None


class ModelVersion(Value):
    """One version of a registered model: a bundle under a name that never changes."""

    model_config = _ALL_NUMBERS

    name: str
    version: int
    bundle_digest: str
    path: str
    """Folder of the stored copy of the bundle."""
    source: str
    """Where the bundle was when it was registered."""
    run_id: str | None = None
    """The run that made it."""
    aliases: tuple[str, ...] = ()
    """Names that point to this version now."""
    provenance: Provenance
    scores: Scores = Scores()
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
