"""What a search has done already, on disk: a search that was killed goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fairlead.core.bundle import Bundle
from fairlead.core.errors import FairleadError
from fairlead.core.files import digest_bytes, write_json
from fairlead.core.values import Value
from fairlead.core.version import __version__

__all__ = ["Journal", "TrialResult"]

V = TypeVar("V", bound=Value)


class TrialResult(Value):
    """What became of one trial."""

    trial: str
    verdict: str
    """`done`, `kept`, `refused` or `failed`."""
    summary: str
    bundle: str | None = None
    """Folder of the result, beside the journal; None when there is none."""
    digest: str | None = None
    evaluations: int = 0
    """Versions that were judged on the rows that choose while it was made."""
    confirmations: int = 0
    """Versions that were judged once more on rows of their own."""
    change: str = ""
    details: Mapping[str, Any] = {}


class Journal:
    """A folder with one file per finished step; each is written whole or not at all."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Open a journal.

        Args:
            folder: Where it lies; made when it is not there.
            facts: What every step depends on: digests, versions, seeds.
        """
        self.folder = folder
        self._facts = {**facts, "version": __version__}
        self.reused = 0

    def place(self, name: str) -> Path:
        """Return the folder for a trial's bundle."""
        return self.folder / name.replace(", ", "-").replace(" ", "-")

    def once(
        self, step: str, settings: Mapping[str, Any], kind: type[V], make: Callable[[], V]
    ) -> V:
        """Return the result of a step, from the journal when it was done before.

        Args:
            step: Name of the step.
            settings: What it depends on besides the facts.
            kind: Class of its result.
            make: Does it.
        """
        document = json.dumps(
            {"step": step, "settings": settings, **self._facts}, sort_keys=True, default=str
        )
        key = digest_bytes(document.encode()).removeprefix("sha256:")[:16]
        path = self.folder / "journal" / f"{self.place(step).name}-{key}.json"
        found = _read(path, kind)
        if found is not None and self._is_whole(found):
            self.reused += 1
            return found
        if kind is TrialResult:
            # What a killed run left behind was never finished.
            shutil.rmtree(self.place(step), ignore_errors=True)
        made = make()
        write_json(path, made.model_dump(mode="json"))
        return made

    def _is_whole(self, found: Value) -> bool:
        if not isinstance(found, TrialResult) or found.bundle is None:
            return True
        try:
            return Bundle.open(self.folder / found.bundle).digest == found.digest
        except FairleadError:
            return False


def _read(path: Path, kind: type[V]) -> V | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
