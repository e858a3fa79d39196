"""The state database: SQLite in the workspace, or PostgreSQL for a team, through SQLAlchemy.

SQLite runs in WAL mode, so that readers never wait for a writer, with `synchronous=FULL`: a
measurement that was acknowledged must also survive a power cut, and Fairlead commits so seldom
(once per outcome, once per run) that one fsync per commit is not felt. Writers take the write lock
when they begin (`BEGIN IMMEDIATE`), so that reading a number and writing the next one is one
step, and wait up to `BUSY_TIMEOUT_S` for each other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, inspect, select
from sqlalchemy import exc as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from fairlead.backends.sql_errors import hidden, translated_sql_errors
from fairlead.backends.sql_schema import EVIDENCE, METADATA, SCHEMA, SCHEMA_VERSION
from fairlead.core.errors import ConfigError, DataError, WorkspaceError
from fairlead.core.evidence import Evidence
from fairlead.core.files import translated_os_errors

__all__ = ["BUSY_TIMEOUT_S", "Database", "SqlEvidenceStore", "insert_new"]

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one."""

_URL_HINT = "write FAIRLEAD_DATABASE_URL as sqlite:////path/file.db or postgresql://user@host/name"
_WRITES = "fairlead_writes"
_MAX_INTEGER = 2**63 - 1


class Database:
    """One state database: opens it, makes its tables, and hands out transactions."""

    def __init__(self, database_url: str) -> None:
        """Name the database; nothing is opened before the first transaction.

        Args:
            database_url: SQLAlchemy URL, `sqlite:///…` or `postgresql://…`.

        Raises:
            ConfigError: The URL cannot be read or names an unknown kind of database.
        """
        self.url = database_url
        self._is_ready = False
        with translated_sql_errors(database_url):
            self._engine = _create_engine(make_url(database_url))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the database.

        Raises:
            WorkspaceError: The database cannot be read.
        """
        with translated_sql_errors(self.url):
            self._prepare()
            with self._engine.connect() as connection, connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that is stored whole when the block ends well, else not at all.

        Raises:
            WorkspaceError: The database cannot be written.
        """
        with translated_sql_errors(self.url):
            self._prepare()
            with _write_transaction(self._engine) as connection:
                yield connection

    def _prepare(self) -> None:
        if self._is_ready:
            return
        _make_folder(self._engine)
        found = _read_schema_version(self._engine)
        if found is None:
            found = self._create_tables()
        if found > SCHEMA_VERSION:
            raise WorkspaceError(
                f"the database {hidden(self.url)} has schema {found}, this version of fairlead "
                f"knows {SCHEMA_VERSION}",
                hint="update fairlead, or set FAIRLEAD_HOME to another folder",
            )
        self._is_ready = True

    def _create_tables(self) -> int:
        if self._engine.dialect.name == "sqlite":
            _enable_wal(self._engine)
        with _write_transaction(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                # Two processes that create tables at once: the second waits for the first.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(708114)")
            METADATA.create_all(connection)
            found = connection.execute(select(SCHEMA.c.version)).scalar()
            if found is None:
                connection.execute(insert(SCHEMA).values(version=SCHEMA_VERSION))
                return SCHEMA_VERSION
            return int(found)


@contextmanager
def _write_transaction(engine: Engine) -> Iterator[Connection]:
    options = {_WRITES: True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def _create_engine(url: URL) -> Engine:
    name = url.get_backend_name()
    if name == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError(
                f"the database {url} lives in memory and would forget everything", hint=_URL_HINT
            )
        # A connection per transaction: nothing to leak, nothing shared across fork or threads.
        engine = create_engine(
            url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT_S, **_uri_flag(url)}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if name == "postgresql":
        driven = url.set(drivername="postgresql+psycopg") if "+" not in url.drivername else url
        return create_engine(driven, poolclass=NullPool)
    raise ConfigError(
        f"the database {url} is of kind `{name}`, expected sqlite or postgresql", hint=_URL_HINT
    )


def _uri_flag(url: URL) -> dict[str, bool]:
    return {"uri": True} if (url.database or "").startswith("file:") else {}


def _prepare_sqlite(connection: Any, _record: Any) -> None:  # noqa: ANN401 (DBAPI connection)
    # SQLAlchemy begins transactions itself, see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_folder(engine: Engine) -> None:
    path = engine.url.database
    if engine.dialect.name == "sqlite" and path and not path.startswith((":", "file:")):
        folder = Path(path).parent
        with translated_os_errors(folder, "the database"):
            folder.mkdir(parents=True, exist_ok=True)


def _enable_wal(engine: Engine) -> None:
    """Switch to WAL; SQLite does not wait for other openers here, so this does."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode=WAL")
            return
        except raw.dialect.dbapi.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise sql.OperationalError("PRAGMA journal_mode", None, exc) from exc
            time.sleep(0.02)
        finally:
            raw.close()


def _read_schema_version(engine: Engine) -> int | None:
    with engine.connect() as connection, connection.begin():
        if not inspect(connection).has_table(SCHEMA.name):
            return None
        found = connection.execute(select(SCHEMA.c.version)).scalar()
        return None if found is None else int(found)


def insert_new(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows; a row whose key is already there is left out."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


class SqlEvidenceStore:
    """Append-only memory of measurements; implements `core.evidence.EvidenceStore`."""

    def __init__(self, database_url: str) -> None:
        """Name the database; it is opened, and its tables made, by the first call.

        Raises:
            ConfigError: The URL cannot be read or names an unknown kind of database.
        """
        self._database = Database(database_url)

    def append(self, evidence: Sequence[Evidence]) -> None:
        """Store measurements, all of them or none; an id that is already stored is left out.

        Raises:
            DataError: A value or an end of an interval is NaN, or a number too large to store.
            WorkspaceError: The database cannot be written.
        """
        rows = [_row(item) for item in evidence]
        if not rows:
            return
        with self._database.writing() as connection:
            insert_new(connection, EVIDENCE, rows)

    def query(
        self,
        *,
        metric: str | None = None,
        subject: str | None = None,
        skill: str | None = None,
        limit: int = 1000,
    ) -> list[Evidence]:
        """Return the measurements that match everything given, newest first.

        Raises:
            WorkspaceError: The database cannot be read.
        """
        wanted = {"metric": metric, "subject": subject, "skill": skill}
        statement = select(EVIDENCE).order_by(EVIDENCE.c.measured_at.desc(), EVIDENCE.c.seq.desc())
        for name, value in wanted.items():
            if value is not None:
                statement = statement.where(EVIDENCE.c[name] == value)
        with self._database.reading() as connection:
            found = connection.execute(statement.limit(max(0, limit))).mappings().all()
        return [_evidence(dict(row)) for row in found]


def _row(item: Evidence) -> dict[str, Any]:
    for name in ("value", "ci_low", "ci_high"):
        number = getattr(item, name)
        if number is not None and math.isnan(number):
            raise DataError(
                f"the measurement `{item.metric}` of {item.subject} has {name} NaN",
                hint="a measurement is a number: leave out what could not be measured",
            )
    if item.sample_size > _MAX_INTEGER:
        raise DataError(
            f"the measurement `{item.metric}` has sample_size {item.sample_size}, "
            f"expected at most {_MAX_INTEGER}",
            hint="give the number of rows, requests or repetitions",
        )
    row = item.model_dump()
    at: datetime = item.measured_at if item.measured_at.tzinfo else item.measured_at.astimezone()
    row["measured_at"] = at.astimezone(UTC).isoformat(timespec="microseconds")
    for name in ("labels", "environment"):
        row[name] = json.dumps(dict(row[name]), sort_keys=True)
    return row


def _evidence(row: dict[str, Any]) -> Evidence:
    del row["seq"]
    for name in ("labels", "environment"):
        row[name] = json.loads(row[name])
    return Evidence.model_validate(row)
