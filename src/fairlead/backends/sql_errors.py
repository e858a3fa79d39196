"""What SQLAlchemy and its drivers raise, turned into Fairlead's errors with a next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import exc as sql
from sqlalchemy.engine import make_url

from fairlead.core.errors import ConfigError, FairleadError, MissingExtraError, WorkspaceError

__all__ = ["hidden", "translated_sql_errors"]


@dataclass(frozen=True, slots=True)
class _Case:
    """A phrase of a driver's message, and what it means for the reader."""

    phrase: str
    meaning: str
    hint: str


_CASES = (
    _Case(
        "is locked",
        "another process holds the database",
        "wait until the other command ends, then run this one again",
    ),
    _Case(
        "readonly",
        "it can be read but not written",
        "give yourself the right to write it, or set FAIRLEAD_HOME to another folder",
    ),
    _Case(
        "disk is full",
        "the disk is full",
        "free some space on the disk, then run the same command again",
    ),
    _Case(
        "disk i/o error",
        "the disk refused to read or write",
        "check free space and the health of the disk, then run the same command again",
    ),
    _Case(
        "not a database",
        "the file holds something else than a database",
        "restore it from a copy, or move it away to start with an empty one",
    ),
    _Case(
        "malformed",
        "the file is damaged",
        "restore it from a copy, or move it away to start with an empty one",
    ),
    _Case(
        "unable to open",
        "the file cannot be opened",
        "check that its folder exists and that you may write it",
    ),
    _Case(
        "no such table",
        "the tables of Fairlead are missing",
        "restore it from a copy, or move it away to start with an empty one",
    ),
    _Case(
        "no such column",
        "the tables were not made by Fairlead",
        "move it away to start with an empty one, or name another in FAIRLEAD_DATABASE_URL",
    ),
    _Case(
        "connection",
        "the database server cannot be reached",
        "check FAIRLEAD_DATABASE_URL and that the server runs",
    ),
    _Case(
        "authentication",
        "the database server refused the user or the password",
        "check the user and the password in FAIRLEAD_DATABASE_URL",
    ),
    _Case(
        "permission denied",
        "the user of the database may not do this",
        "grant the user of FAIRLEAD_DATABASE_URL the right to create and write tables",
    ),
)
_NO_CASE = _Case("", "", "check the database, or name another one in FAIRLEAD_DATABASE_URL")
_URL_HINT = "write FAIRLEAD_DATABASE_URL as sqlite:////path/file.db or postgresql://user@host/name"


def hidden(database_url: str) -> str:
    """Return a database URL whose password does not show."""
    try:
        return make_url(database_url).render_as_string(hide_password=True)
    except sql.ArgumentError:
        return "(a text that is no database URL)"


@contextmanager
def translated_sql_errors(database_url: str) -> Iterator[None]:
    """Turn what SQLAlchemy raises inside the block into an error with a next step.

    Args:
        database_url: The database that is used; its password never shows.

    Raises:
        ConfigError: The URL cannot be read or names an unknown kind of database.
        MissingExtraError: The driver of the database is not installed.
        WorkspaceError: The database is locked, read-only, full, damaged or out of reach.
    """
    try:
        yield
    except (sql.SQLAlchemyError, ModuleNotFoundError, OverflowError, UnicodeError) as exc:
        raise _translate(exc, database_url) from exc


def _translate(error: Exception, database_url: str) -> FairleadError:
    shown = hidden(database_url)
    if isinstance(error, ModuleNotFoundError):
        return MissingExtraError(
            f"the database {shown} needs `{error.name}`, which is not installed",
            hint="pip install 'fairlead[postgres]'",
        )
    if isinstance(error, sql.NoSuchModuleError | sql.ArgumentError):
        reason = str(error).splitlines()[0]
        return ConfigError(f"the database URL {shown} cannot be used: {reason}", hint=_URL_HINT)
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    case = next((c for c in _CASES if c.phrase in reason.lower()), _NO_CASE)
    meaning = f"{case.meaning} ({reason})" if case.meaning else reason
    return WorkspaceError(f"the database {shown} cannot be used: {meaning}", hint=case.hint)
