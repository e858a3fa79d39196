"""One process at a time: locks that the operating system or the database drops with their holder.

A file lock needs no clean-up after a crash: the kernel releases it when the process ends, however
it ends. PostgreSQL does the same with an advisory lock when the connection ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from fairlead.backends.sql_errors import translated_sql_errors
from fairlead.core.errors import ConflictError
from fairlead.core.files import translated_os_errors

__all__ = ["exclusive", "is_held"]

_PATIENCE_S = 0.3
_HINT = "wait until it ends, or stop it, then run the same command again"


@contextmanager
def exclusive(database_url: str, name: str) -> Iterator[None]:
    """Hold the lock of that name while the block runs.

    Args:
        database_url: The state database; for SQLite the lock is a file beside it.
        name: What only one process may do at a time.

    Raises:
        ConflictError: Another process holds the lock; the message names it.
        WorkspaceError: The lock cannot be written or the database not reached.
    """
    if make_url(database_url).get_backend_name() == "sqlite":
        with _file_lock(_lock_file(database_url, name), name):
            yield
    else:
        with _advisory_lock(database_url, name):
            yield


def is_held(database_url: str, name: str) -> bool:
    """Return whether a living process holds the lock."""
    if (
        make_url(database_url).get_backend_name() == "sqlite"
        and not _lock_file(database_url, name).exists()
    ):
        return False
    try:
        with exclusive(database_url, name):
            return False
    except ConflictError:
        return True


def _lock_file(database_url: str, name: str) -> Path:
    database = Path(make_url(database_url).database or "state.db")
    return database.parent / "locks" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock"


@contextmanager
def _file_lock(path: Path, name: str) -> Iterator[None]:
    with translated_os_errors(path, "the lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(path, name)
    try:
        yield
    finally:
        # Only the holder removes the file, and removes it before it lets go.
        path.unlink(missing_ok=True)
        os.close(handle)


def _take(path: Path, name: str) -> int:
    """Take the lock; `is_held` holds it for an instant, so one refusal does not count."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(handle, 64, 0).decode(errors="replace").strip()
                os.close(handle)
                raise ConflictError(
                    f"{name} is already at work in process {holder or 'unknown'}", hint=_HINT
                ) from None
        os.close(handle)
        time.sleep(0.01)


def _is_same_file(handle: int, path: Path) -> bool:
    """Return whether the path still names the open file, not one that was made after it."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


@contextmanager
def _advisory_lock(database_url: str, name: str) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    url = make_url(database_url)
    engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_size=1)
    try:
        with translated_sql_errors(database_url):
            connection = engine.connect()
            got = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
            is_mine = bool(got.scalar())
            connection.commit()
        if not is_mine:
            connection.close()
            raise ConflictError(f"{name} is already at work in another process", hint=_HINT)
        try:
            yield
        finally:
            connection.close()
    finally:
        engine.dispose()
