"""The settings of security, one TOML file: tokens, certificates, rights, limits, audit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fairlead.core.errors import ConfigError
from fairlead.core.values import Config

__all__ = [
    "AuditConfig",
    "ClientConfig",
    "JwtConfig",
    "LimitConfig",
    "SecurityConfig",
    "TlsConfig",
    "read_security",
]

Access = Literal["auto", "open", "admin"]
_PATHS = {
    "jwt": ("jwks_file", "secret_file"),
    "tls": ("certificate", "key", "client_ca"),
    "audit": ("folder",),
}


class JwtConfig(Config):
    """Which bearer tokens of an identity provider are believed."""

    issuer: str = Field(min_length=1)
    """Value that the claim `iss` must have."""
    audience: str = Field(min_length=1)
    """Value that the claim `aud` must hold."""
    jwks_url: str | None = None
    """Where the provider publishes its keys; https, or http on this machine."""
    jwks_file: Path | None = None
    """File that holds the provider's keys instead; read again when it changes."""
    secret_file: Path | None = None
    """File with a shared secret of 32 bytes or more; the only way to allow HS algorithms."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Algorithms that are believed; `none` never is."""
    leeway_s: float = Field(30.0, ge=0, le=300)
    """Clocks may differ by this much, in seconds."""
    refresh_s: float = Field(300.0, ge=1, le=86400)
    """Keys are fetched again after this time, in seconds, and when a token names a new one."""
    scope_claim: str = "scope"
    """Claim that holds the scopes, as text with spaces or as a list."""
    scope_prefix: str = "fairlead"
    """`PREFIX:infer` asks every model, `PREFIX:infer:MODEL` one, `PREFIX:admin` may administer."""
    require_scope: bool = True
    """Whether a token without such a scope is refused; else it asks every model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
                 "EdDSA", "HS256", "HS384", "HS512"}  # fmt: skip
        unknown = sorted(set(self.algorithms) - known)
        if unknown or not self.algorithms:
            raise ValueError(f"algorithms {unknown} are not of {sorted(known)}")
        shared = [name for name in self.algorithms if name.startswith("HS")]
        if shared and self.secret_file is None:
            raise ValueError(f"{', '.join(shared)} needs `secret_file`")
        if len(shared) < len(self.algorithms) and not (self.jwks_url or self.jwks_file):
            raise ValueError("give `jwks_url` or `jwks_file`")
        if self.jwks_url and self.jwks_file:
            raise ValueError("give `jwks_url` or `jwks_file`, not both")
        return self


class TlsConfig(Config):
    """Certificates of the server, and which clients must show one."""

    certificate: Path
    """PEM file with the server's certificate and its chain; read again when it changes."""
    key: Path
    """PEM file with its private key, not encrypted."""
    client_ca: Path | None = None
    """PEM file of the authorities that sign clients' certificates; switches mTLS on."""
    client_certificates: Literal["required", "optional"] = "required"
    """`required` ends connections without a certificate; `optional` takes it as one credential."""

    @property
    def is_client_required(self) -> bool:
        """Whether connections without a client's certificate are ended."""
        return self.client_ca is not None and self.client_certificates == "required"


class ClientConfig(Config):
    """What the holder of a certificate may do."""

    models: tuple[str, ...] | None = None
    """Models that it may ask; None for all."""
    is_admin: bool = False
    """Whether it may administer the server."""
    rate_rps: float | None = Field(None, gt=0)
    """Most requests per second on average; None takes the default of `limits`."""
    burst: int | None = Field(None, ge=1)
    """Requests that may come at once; None takes one second's worth."""


class LimitConfig(Config):
    """How often a caller may ask where its key says nothing."""

    rate_rps: float | None = Field(None, gt=0)
    """Most requests per second of one caller, over all workers; None sets no limit."""
    burst: int | None = Field(None, ge=1)
    """Requests that may come at once; None takes one second's worth."""
    anonymous_rate_rps: float | None = Field(None, gt=0)
    """The same for one address, on a server that asks for no credentials."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.burst is not None and self.rate_rps is None:
            raise ValueError("`burst` needs `rate_rps`, which says how fast it comes back")
        return self


class AuditConfig(Config):
    """What is written down of calls."""

    is_on: bool = True
    """Whether calls of administration and refused calls are written down."""
    all_requests: bool = False
    """Whether every other call is written down, too."""
    folder: Path | None = None
    """Where the files go; None takes `audit/` in the workspace."""
    max_bytes: int = Field(10 << 20, ge=4096)
    """Size after which a file is put aside."""
    keep: int = Field(5, ge=1, le=1000)
    """Files that are kept beside the current one."""


class SecurityConfig(Config):
    """Everything that a security file may say."""

    jwt: JwtConfig | None = None
    """Tokens of an identity provider."""
    tls: TlsConfig | None = None
    """Certificates."""
    clients: dict[str, ClientConfig] | None = None
    """Common name of a client's certificate → rights; None lets every client of `client_ca` infer.
    """
    limits: LimitConfig = LimitConfig()
    """How often callers may ask."""
    audit: AuditConfig = AuditConfig()
    """What is written down."""
    metrics_access: Access = "auto"
    """Who reads `/metrics`: `auto` is everybody on loopback and administrators elsewhere."""
    repository_access: Access = "auto"
    """Who loads and unloads models: `auto` is everybody on a loopback address where no
    credentials are asked for, and administrators elsewhere. `open` is everybody who may ask, and
    administrators where that needs no credentials on another address than loopback."""


def read_security(path: Path) -> SecurityConfig:
    """Read a security file; relative paths in it start at its folder.

    Raises:
        ConfigError: It cannot be read, or says something unknown.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            f"the security file {path} cannot be read: {reason}",
            hint="docs/concepts/serving-security.md shows one",
        ) from exc
    return SecurityConfig.parse(_anchored(document, path.resolve().parent))


def _anchored(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    for section, names in _PATHS.items():
        part = document.get(section)
        for name in names:
            if isinstance(part, dict) and isinstance(part.get(name), str):
                part[name] = folder / part[name]
    return document
