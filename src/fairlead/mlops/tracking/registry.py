"""The model registry: a name, a version that counts up, aliases that move, bytes that stay."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fairlead.core.bundle import Bundle
from fairlead.core.errors import NotFoundError, UsageError
from fairlead.core.report import Finding, Outcome, Report, Table
from fairlead.core.run import ModelVersion
from fairlead.core.workspace import Workspace
from fairlead.mlops.tracking.card import CARD

if TYPE_CHECKING:
    from fairlead.backends.sql_registry import SqlRegistry

__all__ = [
    "delete_alias",
    "list_versions",
    "read_version",
    "register",
    "resolve",
    "set_alias",
    "show_version",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALIAS = re.compile(r"(?!v?\d+$|latest$)[A-Za-z][A-Za-z0-9_-]{0,63}")


def _open(workspace: Workspace) -> SqlRegistry:
    from fairlead.backends.sql_registry import SqlRegistry

    return SqlRegistry(workspace.database_url)


def register(
    bundle: Bundle,
    name: str,
    *,
    workspace: Workspace,
    run_id: str | None = None,
    alias: str | None = None,
) -> Outcome[ModelVersion]:
    """Store a copy of a bundle and make it the next version of a model.

    Args:
        bundle: The package; its bytes are copied, so the original may go.
        name: Of the registered model; letters, digits, `.`, `_` and `-`.
        workspace: Where it is stored.
        run_id: The run that made it; it must exist.
        alias: Name that points to this version from now on, for example `champion`.

    Raises:
        UsageError: The name or the alias cannot be used.
        NotFoundError: There is no such run.
        IntegrityError: The bundle was changed.
        WorkspaceError: The workspace cannot be written.
    """
    from fairlead.backends.artifact_store import ArtifactStore
    from fairlead.backends.sql_runs import SqlRunStore

    _check_name(name)
    if alias is not None:
        _check_alias(alias)
    run = SqlRunStore(workspace.database_url).read(run_id) if run_id else None
    stored = ArtifactStore(workspace.artifacts).put_bundle(bundle)

    def make(version: int) -> ModelVersion:
        return ModelVersion(
            name=name,
            version=version,
            bundle_digest=bundle.digest,
            path=str(stored),
            source=str(bundle.path),
            run_id=run.id if run else None,
            provenance=bundle.provenance,
            scores=bundle.scores,
        )

    registry = _open(workspace)
    before = registry.find_bundle(bundle.digest)
    made = registry.register(name, make, alias=alias)
    findings = []
    if before is not None:
        text = f"the same bytes are already {before.name}:{before.version}"
        findings.append(Finding(level="info", text=text))
    pointed = f" and is now `{alias}`" if alias else ""
    report = _describe(made, f"{name}:{made.version} is registered{pointed}.", tuple(findings))
    return Outcome(made, report)


def read_version(reference: str, *, workspace: Workspace) -> ModelVersion:
    """Return the version that `name`, `name@alias` or `name:version` means; a name: the latest.

    Raises:
        UsageError: The reference cannot be read.
        NotFoundError: There is no such model, version or alias.
        WorkspaceError: The database cannot be read.
    """
    name, alias, number = _split(reference)
    return _open(workspace).read(name, version=number, alias=alias)


def resolve(reference: str, *, workspace: Workspace) -> Bundle:
    """Return the stored bundle of a version, its bytes checked.

    Raises:
        UsageError: The reference cannot be read.
        NotFoundError: There is no such model, version or alias.
        IntegrityError: The stored bytes were changed.
    """
    return _bundle_of(read_version(reference, workspace=workspace), workspace)


def _bundle_of(version: ModelVersion, workspace: Workspace) -> Bundle:
    from fairlead.backends.artifact_store import ArtifactStore

    path = ArtifactStore(workspace.artifacts).bundle_path(version.bundle_digest)
    if not path.is_dir():
        raise NotFoundError(
            f"the stored bundle of {version.name}:{version.version} is gone from {path}",
            hint="restore the folder `artifacts` of the workspace from a copy",
        )
    return Bundle.open(path)


def show_version(reference: str, *, workspace: Workspace) -> Outcome[ModelVersion]:
    """Describe a version and follow its ancestors as far as they are registered.

    Raises:
        UsageError: The reference cannot be read.
        NotFoundError: There is no such model, version or alias.
        IntegrityError: The stored bytes were changed.
    """
    version = read_version(reference, workspace=workspace)
    _bundle_of(version, workspace)
    lineage = _lineage(version, _open(workspace))
    report = _describe(version, f"{version.name}:{version.version}, bytes checked.", ())
    table = Table(
        title="Lineage, from the model to its origin",
        columns=("what", "digest", "made by", "registered as"),
        rows=tuple(lineage),
    )
    details = {**report.details, "lineage": [list(row) for row in lineage]}
    return Outcome(
        version,
        report.model_copy(update={"tables": (*report.tables, table), "details": details}),
    )


def list_versions(name: str | None = None, *, workspace: Workspace) -> list[ModelVersion]:
    """Return versions of one model or of all, the latest first.

    Raises:
        NotFoundError: There is no model of that name.
        WorkspaceError: The database cannot be read.
    """
    return _open(workspace).versions(name)


def set_alias(
    name: str, version: int, alias: str, *, workspace: Workspace
) -> Outcome[ModelVersion]:
    """Point an alias at a version; readers see the old one or the new one, never none.

    Raises:
        UsageError: The alias cannot be used.
        NotFoundError: There is no such version.
        WorkspaceError: The database cannot be written.
    """
    _check_alias(alias)
    found, before = _open(workspace).set_alias(name, alias, version)
    moved = f", before it was version {before}" if before not in (None, version) else ""
    report = _describe(found, f"`{alias}` of {name} is version {version}{moved}.", ())
    if before == version:
        report = report.model_copy(update={"verdict": "kept"})
    return Outcome(found, report)


def delete_alias(name: str, alias: str, *, workspace: Workspace) -> Report:
    """Remove an alias; the version it pointed to stays.

    Raises:
        NotFoundError: There is no such alias.
        WorkspaceError: The database cannot be written.
    """
    before = _open(workspace).delete_alias(name, alias)
    return Report(
        skill=CARD.id,
        title=f"Alias {alias} of {name}",
        summary=f"`{alias}` is gone; {name}:{before}, which it pointed to, stays.",
        details={"name": name, "alias": alias, "version": before},
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a model",
            hint="use up to 100 letters, digits, dots, underscores and dashes",
        )


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias",
            hint="begin with a letter; numbers, `v1` and `latest` would be taken for versions",
        )


def _split(reference: str) -> tuple[str, str | None, int | None]:
    name, at, alias = reference.partition("@")
    if at:
        _check_name(name)
        return name, alias, None
    name, colon, number = reference.partition(":")
    _check_name(name)
    if not colon or number == "latest":
        return name, None, None
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise UsageError(
            f"{reference!r} has no version number after the colon",
            hint="write name:3, name@alias, or name for the latest version",
        )
    return name, None, int(number)


def _describe(version: ModelVersion, summary: str, findings: tuple[Finding, ...]) -> Report:
    source = version.provenance
    facts: tuple[tuple[str, str], ...] = (
        ("model", f"{version.name}:{version.version}"),
        ("aliases", ", ".join(version.aliases) or "none"),
        ("bundle", version.bundle_digest),
        ("stored in", version.path),
        ("run", version.run_id or "not given"),
        ("commit", source.git_commit or "not recorded"),
        ("data", source.data_digest or "not recorded"),
        ("changes", "; ".join(source.changes) or "none"),
    )
    return Report(
        skill=CARD.id,
        title=f"Model {version.name}:{version.version}",
        summary=summary,
        findings=findings,
        tables=(Table(title="Version", columns=("what", "value"), rows=facts),),
        files={"bundle": version.path},
        details=version.model_dump(mode="json"),
    )


def _lineage(version: ModelVersion, registry: SqlRegistry) -> list[tuple[str, str, str, str]]:
    rows = [_link("this version", version.bundle_digest, version)]
    parent, source = version.provenance.parent_digest, version.provenance
    while parent is not None and len(rows) < 100:
        found = registry.find_bundle(parent)
        if found is None:
            rows.append(("parent bundle", parent, "", "not registered"))
            break
        rows.append(_link("parent bundle", parent, found))
        parent, source = found.provenance.parent_digest, found.provenance
    rows.append(("trained model", source.source_digest, source.source, ""))
    if source.data_digest:
        rows.append(("data", source.data_digest, source.data_source, ""))
    return rows


def _link(what: str, digest: str, version: ModelVersion) -> tuple[str, str, str, str]:
    return what, digest, version.provenance.made_by, f"{version.name}:{version.version}"
