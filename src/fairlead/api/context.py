"""What every verb needs: the workspace, the evidence store, and someone to tell about progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fairlead.core.evidence import EvidenceStore
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

if TYPE_CHECKING:
    from fairlead.core.report import Outcome

__all__ = ["Context"]

N = TypeVar("N")


@dataclass(frozen=True)
class Context:
    """The surroundings of one call.

    Attributes:
        workspace: Where state lives.
        settings: Settings of the process.
        progress: Hears how far the work is.
    """

    workspace: Workspace
    settings: Settings
    progress: Progress = field(default_factory=SilentProgress)

    @classmethod
    def open(
        cls,
        *,
        home: Path | None = None,
        progress: Progress | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Context:
        """Open the workspace named by argument, environment or default.

        Args:
            home: Folder of the workspace; None leaves it to the settings.
            progress: Hears how far the work is.
            settings: `Settings` that win over environment and file; None leaves one to them.

        Raises:
            WorkspaceError: The workspace cannot be written.
            ConfigError: A setting has a wrong value.
        """
        found = Settings.load(home=home, **(settings or {}))
        return cls(Workspace.open(found), found, progress or SilentProgress())

    @cached_property
    def evidence(self) -> EvidenceStore:
        """The evidence store of the workspace."""
        from fairlead.backends.sql import SqlEvidenceStore

        return SqlEvidenceStore(self.workspace.database_url)

    def ready_to_record(self) -> Context:
        """Return this, or fail before work is done whose measurements could not be stored.

        Raises:
            WorkspaceError: The disk is full, or the database cannot be used.
        """
        self.workspace.check_space()
        self.evidence.query(metric="", limit=1)
        return self

    def record(self, outcome: Outcome[N]) -> Outcome[N]:
        """Store the measurements of an outcome and hand it on."""
        if outcome.evidence:
            self.evidence.append(outcome.evidence)
        return outcome
