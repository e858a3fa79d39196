"""The code around a folder, as git sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Snapshot", "current_commit", "take_snapshot"]

_TIMEOUT_S = 60
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What git knows, and what it does not.

    Attributes:
        root: Top folder of the repository.
        commit: Full hash; None before the first commit.
        branch: Name; None when no branch is checked out.
        diff: Staged and unstaged changes of tracked files, binary files included.
        untracked: Files that git neither tracks nor ignores, relative to `root`.
    """

    root: Path
    commit: str | None
    branch: str | None
    diff: bytes
    untracked: tuple[str, ...]


def take_snapshot(folder: Path) -> Snapshot | str:
    """Return the state of the repository around a folder, or why there is none."""
    if shutil.which("git") is None:
        return "git is not installed, so the code was not captured"
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top.returncode != 0:
        reason = top.stderr.decode(errors="replace").strip().splitlines()
        if any((place / ".git").exists() for place in (folder, *folder.parents)) and reason:
            return f"git cannot read the repository, so the code was not captured: {reason[0]}"
        return f"{folder} is not in a git repository, so the code was not captured"
    root = Path(os.fsdecode(top.stdout.rstrip(b"\n")))
    commit = current_commit(root)
    options = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color")
    diff = _git(root, "diff", *options, commit or _EMPTY_TREE)
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    if diff.returncode != 0 or listed.returncode != 0:
        failed = diff if diff.returncode != 0 else listed
        return f"git failed: {failed.stderr.decode(errors='replace').strip()}"
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD").stdout.decode().strip()
    names = tuple(os.fsdecode(name) for name in listed.stdout.split(b"\0") if name)
    return Snapshot(root, commit, branch or None, diff.stdout, names)


def current_commit(folder: Path) -> str | None:
    """Return the full hash of the commit a folder is at, or None where there is none."""
    if shutil.which("git") is None:
        return None
    found = _git(folder, "rev-parse", "--verify", "-q", "HEAD")
    return found.stdout.decode().strip() or None if found.returncode == 0 else None


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    # No lock is taken and no configured program runs: this only looks.
    try:
        return subprocess.run(  # noqa: S603 (a fixed program with fixed words)
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *words],  # noqa: S607
            cwd=folder,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError) as exc:
        return subprocess.CompletedProcess(words, 1, b"", str(exc).encode())
