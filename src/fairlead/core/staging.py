"""Folders under construction: gone when their block ends, or when the next one begins.

A process that is killed cannot clear away what it was making. So every such folder is locked, the
kernel drops the lock with the process, and whoever makes the next folder of that name removes the
ones that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["staging_folder", "swap_folder"]

_MAKING = "making"
_REPLACED = "replaced"
_NAME_LETTERS = 50
"""Letters of a name that are kept, so that the file system takes the longer one."""


@contextmanager
def staging_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make an empty folder; what is left in it when the block ends is removed.

    Args:
        parent: An existing folder on the file system where the result will stand.
        name: What is made, the same from call to call: it finds what a killed process left.

    Raises:
        OSError: The folder cannot be made.
    """
    _clear(parent, name)
    with _claimed(parent, name, _MAKING) as folder:
        yield folder


def swap_folder(staging: Path, target: Path) -> None:
    """Let a folder take the place of another, or of none.

    A process killed in between leaves the old one aside, and the next `staging_folder` of that
    name puts it back.

    Raises:
        OSError: A folder cannot be moved.
    """
    if not target.exists():
        staging.rename(target)
        return
    with _claimed(target.parent, target.name, _REPLACED) as aside:
        target.rename(aside / target.name)
        staging.rename(target)


@contextmanager
def _claimed(parent: Path, name: str, kind: str) -> Iterator[Path]:
    folder, handle = _claim(parent, name, kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _claim(parent: Path, name: str, kind: str) -> tuple[Path, int]:
    """Make a folder and lock it; another process may clear it away before it is locked."""
    while True:
        prefix = f".{name[:_NAME_LETTERS]}."
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=f".{kind}", dir=parent))
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(handle) is not False and folder.exists():
                return folder, handle
            os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock an open folder: True, False when another holds it, None when it cannot be told."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Some network file systems lock no folders; then nothing is cleared either.
        return None
    return True


def _clear(parent: Path, name: str) -> None:
    """Remove what killed processes left, and put back what they were about to replace."""
    letters = re.escape(name[:_NAME_LETTERS])
    pattern = re.compile(rf"\.{letters}\.[a-z0-9_]{{8}}\.({_MAKING}|{_REPLACED})")
    with os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]
    for folder in found:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    _put_back(folder, parent / name)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _put_back(folder: Path, target: Path) -> None:
    old = folder / target.name
    if folder.suffix == f".{_REPLACED}" and old.exists() and not target.exists():
        old.rename(target)
