"""Atomic writes and digests of files: nothing half-written, nothing changed unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fairlead.core.errors import ConflictError, FairleadError, WorkspaceError
from fairlead.core.staging import staging_folder, swap_folder

__all__ = [
    "digest_bytes",
    "digest_file",
    "digest_tree",
    "new_folder",
    "refuse_taken",
    "refused_by_system",
    "scratch_folder",
    "translated_os_errors",
    "user_path",
    "write_bytes",
    "write_json",
    "write_text",
]

_CHUNK_BYTES = 1 << 20
_HINTS = {
    errno.ENOSPC: "free some space on the disk, then run the same command again",
    errno.EDQUOT: "free some space in the quota, then run the same command again",
    errno.EROFS: "choose a folder that can be written, or set FAIRLEAD_HOME to one",
    errno.EACCES: "choose a folder that you may write, or set FAIRLEAD_HOME to one",
    errno.EPERM: "choose a folder that you may write, or set FAIRLEAD_HOME to one",
    errno.EISDIR: "name a file, not a folder",
    errno.EFBIG: "raise the limit on file sizes, then run the same command again",
}


@contextmanager
def translated_os_errors(path: Path, what: str) -> Iterator[None]:
    """Turn an operating system's refusal to write into a `WorkspaceError` with a next step.

    Args:
        path: What is being written.
        what: The subject of the message, for example `the bundle`.

    Raises:
        WorkspaceError: The block raised an `OSError`.
    """
    try:
        yield
    except FairleadError:
        raise
    except OSError as exc:
        number = _number_of(exc)
        reason = os.strerror(number) if number else str(exc)
        hint = _HINTS.get(number or 0, "check the path and its permissions")
        raise WorkspaceError(f"cannot write {what} at {path}: {reason}", hint=hint) from exc


def _number_of(error: OSError) -> int | None:
    """Return the errno; a tree that is copied reports a list of files and reasons instead."""
    if error.errno is not None or not isinstance(error, shutil.Error):
        return error.errno
    found = re.search(r"\[Errno (\d+)\]", str(error))
    return int(found[1]) if found else None


def refused_by_system(error: OSError) -> WorkspaceError:
    """Describe what the operating system refused, where no caller said what it was doing."""
    reason = error.strerror or str(error)
    subject = f"{error.filename}: " if error.filename is not None else ""
    return WorkspaceError(
        f"{subject}{reason}",
        hint=_HINTS.get(error.errno or 0, "check the path and its permissions"),
    )


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return a path that a person wrote, with `~` replaced by the home folder where there is one.

    `Path.expanduser` raises for an unknown user; such a path is taken as it stands instead.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111 (see above)


def digest_bytes(data: bytes) -> str:
    """Return `sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """Return `sha256:…` of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def digest_tree(folder: Path, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return relative path → digest of every file below a folder, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: digest_file(path) for name, path in names.items() if name not in without}


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Args:
        path: The file; its folder is created when it does not exist.
        data: The whole content.
        mode: Permissions of the file; 0o600 for secrets.

    Raises:
        WorkspaceError: The folder cannot be written or the disk is full.
    """
    with translated_os_errors(path, "the file"):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write UTF-8 text atomically; see `write_bytes`."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, document: Any, *, mode: int = 0o644) -> None:  # noqa: ANN401 (JSON)
    """Write a JSON document atomically, keys in order, readable by people."""
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=True) + "\n"
    write_text(path, text, mode=mode)


def refuse_taken(target: Path, *, replace: bool = False, marker: str = "") -> None:
    """Refuse a place that already holds something, before work is done for it.

    Args:
        target: Where a folder will stand.
        replace: Whether an existing folder may be replaced.
        marker: Relative path that shows that an existing folder is of the kind to be replaced;
            a folder without it is somebody's own and is never replaced.

    Raises:
        ConflictError: There is a file, or a folder that is not empty and may not be replaced.
    """
    is_full = target.is_dir() and any(target.iterdir())
    if (is_full and not replace) or (target.exists() and not target.is_dir()):
        raise ConflictError(
            f"{target} already exists", hint="choose another folder, or remove this one first"
        )
    if is_full and marker and not (target / marker).exists():
        raise ConflictError(
            f"{target} holds no {marker}, so it is not what would be replaced",
            hint="choose another folder, or empty this one first",
        )


@contextmanager
def new_folder(
    target: Path, *, what: str, replace: bool = False, marker: str = ""
) -> Iterator[Path]:
    """Fill a folder beside its target and move it into place when the block ends well.

    After a crash or an error the target is as it was before.

    Args:
        target: Where the folder will stand.
        what: Its name for messages, for example `the bundle`.
        replace: Whether an existing folder may be replaced.
        marker: Relative path that an existing folder must hold to be replaced.

    Raises:
        ConflictError: The target exists and may not be replaced.
        WorkspaceError: The folder cannot be written or the disk is full.
    """
    refuse_taken(target, replace=replace, marker=marker)
    with translated_os_errors(target, what):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(target.parent, target.name) as staging:
            yield staging
            staging.chmod(0o755)
            refuse_taken(target, replace=replace, marker=marker)
            try:
                swap_folder(staging, target)
            except OSError as exc:
                if not replace and exc.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    refuse_taken(target, replace=False)  # Another process was faster.
                raise


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Make an empty folder for files in between, where the machine keeps such files.

    Args:
        name: What it is for; a folder of that name that a killed process left is removed.

    Raises:
        WorkspaceError: The folder cannot be written or the disk is full.
    """
    parent = Path(tempfile.gettempdir())
    with ExitStack() as stack:
        with translated_os_errors(parent, "temporary files"):
            folder = stack.enter_context(staging_folder(parent, f"fairlead-{name}"))
        yield folder
