"""Code capture from git: commit, difference to it, and the files git does not know.

The commit alone does not tell which code ran when the tree is dirty, and neither commit nor
difference holds a new file that was never added; so all three are kept.
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

from fairlead.backends.artifact_store import ArtifactStore
from fairlead.backends.git import Snapshot, take_snapshot
from fairlead.core.files import digest_file
from fairlead.core.run import CodeState, RunFile
from fairlead.mlops.tracking.config import TrackingConfig

__all__ = ["FileKeeper", "capture_code"]

_MB = 1_000_000
_MAX_DIGEST_BYTES = 2_000_000_000
_SECRET_FILES = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*",
    ".netrc", ".npmrc", ".pypirc", "credentials", "credentials.*", "*secret*",
)  # fmt: skip


class FileKeeper:
    """Stores files of one run until its budget is spent; the rest is only listed."""

    def __init__(self, store: ArtifactStore, config: TrackingConfig) -> None:
        """Take the limits from the settings."""
        self._store = store
        self._max_file_bytes = config.max_file_mb * _MB
        self._left_bytes = config.max_total_mb * _MB

    def keep_bytes(self, data: bytes, *, role: str, path: str) -> RunFile:
        """Store content; it always is, so that the code of a run is complete."""
        return RunFile.model_validate(
            {
                "role": role,
                "path": path,
                "size_bytes": len(data),
                "digest": self._store.put_bytes(data),
                "is_stored": True,
            }
        )

    def keep(self, file: Path, *, role: str, path: str, is_content_kept: bool = True) -> RunFile:
        """Record a file, with its content when the limits allow it."""
        size = file.lstat().st_size
        reason = "" if is_content_kept else "only its digest is recorded"
        if is_content_kept:
            reason = self._refusal(file, size)
        digest = ""
        if not reason:
            self._left_bytes -= size
            digest = self._store.put_file(file)
        elif size <= _MAX_DIGEST_BYTES:
            digest = digest_file(file)
        return RunFile.model_validate(
            {
                "role": role,
                "path": path,
                "size_bytes": size,
                "digest": digest,
                "is_stored": not reason,
                "reason": reason,
            }
        )

    def _refusal(self, file: Path, size: int) -> str:
        if any(fnmatch.fnmatch(file.name.lower(), pattern) for pattern in _SECRET_FILES):
            return "its name looks like a secret"
        if size > self._max_file_bytes:
            return f"larger than max_file_mb = {self._max_file_bytes / _MB:g}"
        if size > self._left_bytes:
            return "max_total_mb was spent on the files before"
        return ""


def capture_code(folder: Path, keeper: FileKeeper, *, without: Path) -> CodeState:
    """Record the code around a folder.

    Args:
        folder: Any folder of the repository.
        keeper: Stores the difference and the unknown files.
        without: The workspace, whose files are not code.

    Raises:
        WorkspaceError: The artifact store cannot be written.
    """
    snapshot = take_snapshot(folder)
    if isinstance(snapshot, str):
        return CodeState(note=snapshot)
    untracked, unread = _keep_untracked(snapshot, keeper, without)
    diff = None
    if snapshot.diff:
        diff = keeper.keep_bytes(snapshot.diff, role="diff", path="code.diff")
    return CodeState(
        root=str(snapshot.root),
        commit=snapshot.commit,
        branch=snapshot.branch,
        is_dirty=bool(diff or untracked),
        diff=diff,
        untracked=untracked,
        note=f"could not be read: {', '.join(unread[:5])}" if unread else "",
    )


def _keep_untracked(
    snapshot: Snapshot, keeper: FileKeeper, without: Path
) -> tuple[tuple[RunFile, ...], list[str]]:
    kept: list[RunFile] = []
    unread: list[str] = []
    for name in snapshot.untracked:
        path = snapshot.root / name
        if path.is_relative_to(without):
            continue
        shown = name.encode("utf-8", "replace").decode()
        try:
            if path.is_symlink():
                target = os.fsencode(path.readlink())
                kept.append(keeper.keep_bytes(target, role="untracked", path=f"{shown} (link)"))
            elif path.is_file():
                kept.append(keeper.keep(path, role="untracked", path=shown))
        except PermissionError:
            unread.append(shown)
    return tuple(kept), unread
