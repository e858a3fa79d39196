"""The memory of rollouts, so that a killed one can be seen, resumed or aborted.

`rollouts/<service>.json` holds what was seen and decided so far, written whole after every look.
`rollouts/<service>.lock` is locked for as long as the process of the rollout lives.
`rollouts/<service>.request` is `promote` or `abort`, from another command to a running rollout.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from fairlead.core.decision import Decision
from fairlead.core.errors import ConflictError, UsageError, WorkspaceError
from fairlead.core.files import translated_os_errors, write_json, write_text
from fairlead.core.values import Value, describe_validation_error

__all__ = ["RolloutJournal", "RolloutState", "Wish"]

Wish = Literal["promote", "abort"]


class RolloutState(Value):
    """Everything that is known of one rollout."""

    id: str
    """Unique id of the rollout."""
    service: str
    status: Literal["running", "decided", "aborted", "failed"] = "running"
    baseline: str
    """Digest of the baseline bundle."""
    candidate: str
    """Digest of the candidate bundle."""
    settings: dict[str, Any]
    """The `RolloutConfig` it runs under."""
    pid: int
    """Process id of the server."""
    after: int = 0
    """Number of the last outcome that was seen."""
    step: int = 0
    """Index of the share the candidate has."""
    weight: float = 0.0
    """Share of the candidate that was last set, from 0 to 1."""
    step_requests: int = 0
    """Requests the candidate answered at this share."""
    requests: tuple[int, int] = (0, 0)
    """Requests answered by baseline and candidate."""
    seconds: float = 0.0
    """Time spent watching."""
    missed: int = 0
    """Outcomes the server forgot before they were read."""
    watch: dict[str, Any] = Field(default_factory=dict)
    """State of the guardrail tests."""
    history: tuple[tuple[float, float, float], ...] = ()
    """(requests of both arms, share of the candidate, joint e-value for harm) at each look."""
    decision: Decision | None = None
    problem: str = ""
    """Why it failed."""
    started_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class RolloutJournal:
    """Reads and writes the state of the rollout of one service."""

    def __init__(self, folder: Path, service: str) -> None:
        """Remember where the files are; nothing is touched yet.

        Args:
            folder: Folder of all rollouts of the workspace.
            service: Name of the service, safe as a file name.
        """
        self._folder = folder
        self._state = folder / f"{service}.json"
        self._lock = folder / f"{service}.lock"
        self._request = folder / f"{service}.request"
        self.service = service

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only rollout of the service while the block runs.

        Raises:
            ConflictError: Another process is rolling it out.
            WorkspaceError: The workspace cannot be written.
        """
        with translated_os_errors(self._lock, "the lock of the rollout"):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(
                    f"a rollout of `{self.service}` is already under way",
                    hint="see it with `fairlead serve rollout status`, or end it with "
                    "`fairlead serve rollout abort`",
                ) from None
            self._request.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    @property
    def is_held(self) -> bool:
        """Whether the process of a rollout lives."""
        try:
            handle = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def read(self) -> RolloutState | None:
        """Return the last state, or None when there never was a rollout.

        Raises:
            WorkspaceError: The file cannot be read.
        """
        try:
            return RolloutState.model_validate(json.loads(self._state.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            told = describe_validation_error(exc) if isinstance(exc, ValidationError) else str(exc)
            raise WorkspaceError(
                f"{self._state} cannot be read: {told}",
                hint=f"remove {self._state}; the rollout is then forgotten",
            ) from exc

    def write(self, state: RolloutState) -> None:
        """Replace the state, whole or not at all.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        fresh = state.model_copy(update={"updated_at": datetime.now(UTC)})
        write_json(self._state, fresh.model_dump(mode="json"))

    def wish(self, wish: Wish) -> None:
        """Ask the running rollout to end that way at its next look."""
        write_text(self._request, wish)

    def take_wish(self) -> Wish | None:
        """Return what another command asked for, once.

        Raises:
            UsageError: The request is neither `promote` nor `abort`.
        """
        try:
            text = self._request.read_text().strip()
        except OSError:
            return None
        self._request.unlink(missing_ok=True)
        if text == "promote" or text == "abort":
            return text  # type: ignore[return-value]
        raise UsageError(
            f"{self._request} asks for {text!r}", hint="write `promote` or `abort` into it"
        )

    @staticmethod
    def services(folder: Path) -> list[str]:
        """Return the services that ever had a rollout, by name."""
        return sorted(path.stem for path in folder.glob("*.json"))
