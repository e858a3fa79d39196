"""Where state lives: `.fairlead/` in the working directory, or FAIRLEAD_HOME."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fairlead.core.files import translated_os_errors, user_path, write_text
from fairlead.core.settings import Settings

__all__ = ["Workspace"]

_SPACE_BYTES = 1 << 18
"""Room for the measurements of one outcome, with the log of the database."""


@dataclass(frozen=True)
class Workspace:
    """The folder that holds everything Fairlead remembers.

    Attributes:
        root: Absolute path of the folder.
        database_url: SQLAlchemy URL of the state database.
    """

    root: Path
    database_url: str

    @classmethod
    def open(cls, settings: Settings | None = None) -> Workspace:
        """Open the workspace, creating its folders when they do not exist.

        Raises:
            WorkspaceError: The folder cannot be created or written.
            ConfigError: A setting has a wrong value.
        """
        chosen = settings or Settings.load()
        root = user_path(chosen.home).resolve()
        with translated_os_errors(root, "the workspace"):
            for name in ("artifacts", "predictions", "reports", "runs", "services"):
                (root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):  # Nameless: two processes may open at once.
                pass
            ignore = root / ".gitignore"
            if not ignore.exists():
                write_text(ignore, "# State of this machine; not for version control.\n*\n")
        url = chosen.database_url
        return cls(root, url.get_secret_value() if url else f"sqlite:///{root / 'state.db'}")

    def check_space(self) -> None:
        """Fail when the disk takes nothing more, before work is done that would be lost.

        Raises:
            WorkspaceError: The disk is full, or became read-only.
        """
        with (
            translated_os_errors(self.root, "the workspace"),
            tempfile.TemporaryFile(dir=self.root) as probe,
        ):
            probe.write(bytes(_SPACE_BYTES))
            probe.flush()

    @property
    def artifacts(self) -> Path:
        """Content-addressed files."""
        return self.root / "artifacts"

    @property
    def predictions(self) -> Path:
        """Parquet segments of the prediction log, one folder per service."""
        return self.root / "predictions"

    @property
    def reports(self) -> Path:
        """HTML and JSON reports."""
        return self.root / "reports"

    @property
    def runs(self) -> Path:
        """One folder per run of a plan, with the bundles and files its steps made."""
        return self.root / "runs"

    @property
    def services(self) -> Path:
        """One file per running server."""
        return self.root / "services"
