"""API keys of the workspace: who may ask its servers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fairlead.api.context import Context
from fairlead.core.errors import UsageError
from fairlead.core.report import Finding, Measure, Outcome, Report, Table

if TYPE_CHECKING:
    from fairlead.serve.inference.security.keys import ApiKey, KeyFile

__all__ = ["add_key", "list_keys", "revoke_key"]

_SKILL = "model-serving-patterns"
_COLUMNS = ("id", "name", "state", "models", "admin", "requests per second", "expires")


def add_key(
    name: str,
    *,
    models: Sequence[str] = (),
    is_admin: bool = False,
    rate_rps: float | None = None,
    burst: int | None = None,
    expires_in_days: float | None = None,
    context: Context | None = None,
) -> Outcome[str]:
    """Make an API key; from the first one on, servers of the workspace ask for credentials.

    Args:
        name: Who gets it: letters, digits, dots, dashes, underscores and @.
        models: Models that it may ask; none for all.
        is_admin: Whether it may administer servers.
        rate_rps: Most requests per second on average, over all workers.
        burst: Requests that may come at once.
        expires_in_days: Days until it ends.
        context: Surroundings of the call.

    Returns:
        The key; it is not kept anywhere and cannot be shown again.

    Raises:
        ConflictError: A key of that name holds already.
        UsageError: A value cannot be.
        WorkspaceError: The keys cannot be read or written.
    """
    from pydantic import ValidationError

    from fairlead.core.values import describe_validation_error

    end = _end(expires_in_days)
    try:
        key, text = _file(context).add(
            name,
            models=tuple(models) or None,
            is_admin=is_admin,
            rate_rps=rate_rps,
            burst=burst,
            expires_at=end,
        )
    except ValidationError as exc:
        raise UsageError(
            f"such a key cannot be: {describe_validation_error(exc)}",
            hint="`fairlead serve keys add --help` says what a key may have",
        ) from exc
    report = Report(
        skill=_SKILL,
        title=f"API key of {name}",
        summary=f"{text} is the key of {name}; write it down now, it is shown only once.",
        tables=(_table([key]),),
        findings=(
            Finding(
                level="info",
                text="every server of this workspace asks for credentials from now on",
                advice="send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            ),
        ),
        details={"id": key.id, "name": key.name, "key": text},
    )
    return Outcome(text, report)


def list_keys(*, context: Context | None = None) -> Outcome[tuple[ApiKey, ...]]:
    """Return every API key of the workspace, ended ones included; the keys themselves are unknown.

    Args:
        context: Surroundings of the call.

    Raises:
        WorkspaceError: The keys cannot be read.
    """
    keys = tuple(_file(context).read())
    n_good = sum(key.why_not() is None for key in keys)
    report = Report(
        skill=_SKILL,
        title="API keys",
        summary=f"{n_good} of {len(keys)} API keys hold."
        if keys
        else "There is no API key; servers of this workspace are open.",
        measures=(Measure(name="valid_keys", value=n_good, unit="count"),),
        tables=(_table(keys),),
        details={"keys": [key.model_dump(mode="json", exclude={"digest"}) for key in keys]},
    )
    return Outcome(keys, report)


def revoke_key(which: str, *, context: Context | None = None) -> Outcome[tuple[ApiKey, ...]]:
    """Revoke the keys of a name or an id; running servers refuse them within a second.

    Args:
        which: Name or id of the key.
        context: Surroundings of the call.

    Raises:
        NotFoundError: No such key holds.
        WorkspaceError: The keys cannot be read or written.
    """
    ended = tuple(_file(context).revoke(which))
    ids = ", ".join(key.id for key in ended)
    report = Report(
        skill=_SKILL,
        title=f"Revoked {which}",
        summary=f"{ids} of {ended[0].name} holds no more; servers refuse it within a second.",
        tables=(_table(ended),),
        details={"ids": [key.id for key in ended]},
    )
    return Outcome(ended, report)


def _file(context: Context | None) -> KeyFile:
    from fairlead.serve.inference.security.opening import key_file

    return key_file((context or Context.open()).workspace.root)


def _end(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= 36_500:
        raise UsageError(
            f"a key cannot end in {days:g} days", hint="give a number above 0, at most 36500"
        )
    return datetime.now(UTC) + timedelta(days=days)


def _limit(key: ApiKey) -> str:
    rate = "-" if key.rate_rps is None else f"{key.rate_rps:g}"
    return rate if key.burst is None else f"{rate}, {key.burst} at once"


def _table(keys: Sequence[ApiKey]) -> Table:
    rows = tuple(
        (
            key.id,
            key.name,
            key.why_not() or "holds",
            "all" if key.models is None else ", ".join(key.models),
            "yes" if key.is_admin else "no",
            _limit(key),
            "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M} UTC",
        )
        for key in keys
    )
    return Table(title="API keys", columns=_COLUMNS, rows=rows)
