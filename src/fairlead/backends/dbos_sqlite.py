"""Lets DBOS run on a SQLite that is older than it expects.

From Python 3.12 on, DBOS writes `unixepoch('subsec')` into its tables, which SQLite knows since
3.42; Python builds that link the system's library, as on Debian 12, may find an older one, where
the expression is NULL. May go when DBOS asks for the version of SQLite instead of Python's.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event

__all__ = ["engine_for_old_sqlite"]

_KNOWS_SUBSEC = (3, 42)
_BUSY_MS = 30_000


@contextmanager
def engine_for_old_sqlite(
    url: str,
    *,
    sqlite_version: tuple[int, ...] = sqlite3.sqlite_version_info,
    python_version: tuple[int, ...] = sys.version_info[:2],
) -> Iterator[Engine | None]:
    """Give an engine whose connections know `unixepoch('subsec')`; None where nothing is amiss.

    Args:
        url: SQLAlchemy URL of the database.
        sqlite_version: Version of the SQLite library.
        python_version: Version of the interpreter.
    """
    is_fine = sqlite_version >= _KNOWS_SUBSEC or python_version < (3, 12)
    if is_fine or not url.startswith("sqlite"):
        yield None
        return
    engine = create_engine(url)
    event.listen(engine, "connect", _prepare)
    try:
        yield engine
    finally:
        engine.dispose()


def _prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 (a driver's connection)
    """Set what DBOS sets on engines of its own, and the function."""
    connection.create_function("unixepoch", 1, _unixepoch)
    connection.isolation_level = "IMMEDIATE"
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    connection.execute("PRAGMA foreign_keys=ON")


def _unixepoch(moment: str) -> float:
    return time.time() if moment == "subsec" else int(time.time())
