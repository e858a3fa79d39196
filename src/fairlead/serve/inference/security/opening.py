"""Puts a guard together from the settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairlead.serve.inference.security.audit import AuditLog
from fairlead.serve.inference.security.config import SecurityConfig, read_security
from fairlead.serve.inference.security.guard import Guard, GuardParts
from fairlead.serve.inference.security.keys import KeyFile, KeyRing
from fairlead.serve.inference.security.rate_limits import LocalBuckets, SharedBuckets
from fairlead.serve.inference.security.tokens import TokenVerifier

__all__ = ["GuardPlan", "key_file", "open_guard", "read_optional"]


@dataclass(frozen=True)
class GuardPlan:
    """Where a guard finds what it decides by.

    Attributes:
        service: Name of the service.
        default_model: Model that a request without a name means.
        host: Address that the server listens on.
        home: Root of the workspace.
        admin_token: The service's own token.
        is_token_chosen: Whether somebody chose it; else it was made up.
        limits: File of `new_shared_file` that several workers share, or None for one worker.
    """

    service: str
    default_model: str
    host: str
    home: Path
    admin_token: str = field(repr=False)
    is_token_chosen: bool = False
    limits: int | None = None


def key_file(home: Path) -> KeyFile:
    """Return the API keys of a workspace."""
    return KeyFile(home / "security" / "keys.json")


def open_guard(plan: GuardPlan, config: SecurityConfig | None = None) -> Guard:
    """Return a guard.

    Raises:
        ConfigError: A key, secret or certificate file cannot be used.
        WorkspaceError: The keys cannot be read, or the audit log cannot be written.
        MissingExtraError: Tokens are configured and PyJWT is not installed.
    """
    chosen = config or SecurityConfig()
    audit = chosen.audit
    return Guard(
        GuardParts(
            config=chosen,
            host=plan.host,
            default_model=plan.default_model,
            admin_token=plan.admin_token,
            is_token_chosen=plan.is_token_chosen,
            keys=KeyRing(key_file(plan.home)),
            tokens=None if chosen.jwt is None else TokenVerifier(chosen.jwt),
            buckets=LocalBuckets() if plan.limits is None else SharedBuckets(plan.limits),
            audit=AuditLog(
                audit.folder or plan.home / "audit",
                plan.service,
                max_bytes=audit.max_bytes,
                keep=audit.keep,
            )
            if audit.is_on
            else None,
        )
    )


def read_optional(path: Path | None) -> SecurityConfig:
    """Return what a security file says, or the defaults where there is none."""
    return SecurityConfig() if path is None else read_security(path)
