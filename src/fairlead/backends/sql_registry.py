"""The model registry in the state database: names, versions that count up, aliases that move."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, func, insert, select

from fairlead.backends.sql import Database, insert_new
from fairlead.backends.sql_schema import ALIASES, MODELS, VERSIONS
from fairlead.core.errors import NotFoundError
from fairlead.core.run import ModelVersion

__all__ = ["SqlRegistry"]


class SqlRegistry:
    """Memory of model versions; every change is one transaction."""

    def __init__(self, database_url: str) -> None:
        """Name the database; it is opened, and its tables made, by the first call.

        Raises:
            ConfigError: The URL cannot be read or names an unknown kind of database.
        """
        self._database = Database(database_url)

    def register(
        self, name: str, make: Callable[[int], ModelVersion], *, alias: str | None = None
    ) -> ModelVersion:
        """Add the next version of a model, and point an alias at it in the same step.

        Args:
            name: Of the model.
            make: Describes the version whose number it is given.
            alias: Name that points to this version from now on.

        Raises:
            WorkspaceError: The database cannot be written.
        """
        with self._database.writing() as connection:
            insert_new(connection, MODELS, [{"name": name, "created_at": _now()}])
            _hold(connection, name)
            last = connection.execute(
                select(func.max(VERSIONS.c.version)).where(VERSIONS.c.name == name)
            ).scalar()
            version = make(int(last or 0) + 1)
            connection.execute(
                insert(VERSIONS).values(
                    name=name,
                    version=version.version,
                    bundle_digest=version.bundle_digest,
                    document=version.model_copy(update={"aliases": ()}).model_dump_json(),
                )
            )
            if alias is not None:
                _point(connection, name, alias, version.version)
            return _with_aliases(connection, version)

    def set_alias(self, name: str, alias: str, version: int) -> tuple[ModelVersion, int | None]:
        """Point an alias at a version; return that version and the one it pointed to before.

        Raises:
            NotFoundError: There is no such version.
            WorkspaceError: The database cannot be written.
        """
        with self._database.writing() as connection:
            _hold(connection, name)
            found = _version(connection, name, version)
            before = _aliases(connection, name).get(alias)
            _point(connection, name, alias, version)
            return _with_aliases(connection, found), before

    def delete_alias(self, name: str, alias: str) -> int:
        """Remove an alias; return the version it pointed to, which stays.

        Raises:
            NotFoundError: There is no such alias.
            WorkspaceError: The database cannot be written.
        """
        with self._database.writing() as connection:
            before = _find_alias(connection, name, alias)
            connection.execute(
                delete(ALIASES).where(ALIASES.c.name == name, ALIASES.c.alias == alias)
            )
            return before

    def read(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> ModelVersion:
        """Return a version by its number or by an alias; the latest when neither is given.

        Raises:
            NotFoundError: There is no such model, version or alias.
            WorkspaceError: The database cannot be read.
        """
        with self._database.reading() as connection:
            number = version
            if alias is not None:
                number = _find_alias(connection, name, alias)
            return _with_aliases(connection, _version(connection, name, number))

    def versions(self, name: str | None = None, *, limit: int = 1000) -> list[ModelVersion]:
        """Return versions of one model or of all, the latest first.

        Raises:
            NotFoundError: There is no model of that name.
            WorkspaceError: The database cannot be read.
        """
        statement = select(VERSIONS.c.document).order_by(VERSIONS.c.seq.desc()).limit(limit)
        with self._database.reading() as connection:
            if name is not None:
                _check_model(connection, name)
                statement = statement.where(VERSIONS.c.name == name)
            documents = connection.execute(statement).scalars().all()
            found = [ModelVersion.model_validate_json(text) for text in documents]
            return [_with_aliases(connection, item) for item in found]

    def find_bundle(self, digest: str) -> ModelVersion | None:
        """Return the first version that holds a bundle of that digest, or None.

        Raises:
            WorkspaceError: The database cannot be read.
        """
        statement = (
            select(VERSIONS.c.document)
            .where(VERSIONS.c.bundle_digest == digest)
            .order_by(VERSIONS.c.seq)
            .limit(1)
        )
        with self._database.reading() as connection:
            text = connection.execute(statement).scalar()
            return None if text is None else ModelVersion.model_validate_json(text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _hold(connection: Connection, name: str) -> None:
    """Make other writers of the same model wait; SQLite's writers already wait for each other."""
    connection.execute(select(MODELS.c.name).where(MODELS.c.name == name).with_for_update())


def _check_model(connection: Connection, name: str) -> None:
    known = connection.execute(select(MODELS.c.name).order_by(MODELS.c.name)).scalars().all()
    if name not in known:
        shown = ", ".join(known[:10]) or "none; add one with `fairlead mlops registry register`"
        raise NotFoundError(
            f"there is no registered model {name!r}", hint=f"registered models: {shown}"
        )


def _version(connection: Connection, name: str, version: int | None) -> ModelVersion:
    _check_model(connection, name)
    statement = select(VERSIONS.c.document).where(VERSIONS.c.name == name)
    if version is not None:
        statement = statement.where(VERSIONS.c.version == version)
    text = connection.execute(statement.order_by(VERSIONS.c.version.desc()).limit(1)).scalar()
    if text is None:
        last = connection.execute(
            select(func.max(VERSIONS.c.version)).where(VERSIONS.c.name == name)
        ).scalar()
        raise NotFoundError(
            f"the model {name!r} has no version {version}", hint=f"its latest version is {last}"
        )
    return ModelVersion.model_validate_json(text)


def _aliases(connection: Connection, name: str) -> dict[str, int]:
    rows = connection.execute(
        select(ALIASES.c.alias, ALIASES.c.version).where(ALIASES.c.name == name)
    )
    return {alias: int(version) for alias, version in rows}


def _find_alias(connection: Connection, name: str, alias: str) -> int:
    _check_model(connection, name)
    aliases = _aliases(connection, name)
    if alias not in aliases:
        known = ", ".join(f"{key} → {value}" for key, value in sorted(aliases.items())) or "none"
        raise NotFoundError(
            f"the model {name!r} has no alias {alias!r}", hint=f"its aliases: {known}"
        )
    return aliases[alias]


def _with_aliases(connection: Connection, version: ModelVersion) -> ModelVersion:
    mine = sorted(
        alias
        for alias, number in _aliases(connection, version.name).items()
        if number == version.version
    )
    return version.model_copy(update={"aliases": tuple(mine)})


def _point(connection: Connection, name: str, alias: str, version: int) -> None:
    connection.execute(delete(ALIASES).where(ALIASES.c.name == name, ALIASES.c.alias == alias))
    connection.execute(
        insert(ALIASES).values(name=name, alias=alias, version=version, set_at=_now())
    )
