"""What a command shows a server, and whom it trusts: one value for every client of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, SecretStr

from fairlead.backends.client import TlsOptions, client_headers, tls_context
from fairlead.core.errors import UsageError
from fairlead.core.values import Value

if TYPE_CHECKING:
    import ssl

    from fairlead.core.endpoint import Endpoint
    from fairlead.core.settings import Settings

__all__ = ["OPEN", "Access"]

_LONGEST = 64 << 10


class Access(Value):
    """Credentials and certificates for one server; secrets never show in its `repr`."""

    api_key: SecretStr | None = None
    """Key of the caller, sent as `X-API-Key`."""
    token: SecretStr | None = None
    """Token of the caller, sent as `Authorization: Bearer`."""
    tls: TlsOptions = Field(default_factory=TlsOptions)
    """What to trust and to show where the URL is `https`."""

    @classmethod
    def of_endpoint(cls, endpoint: Endpoint, admin_token: str | None) -> Self:
        """Return how a server of this workspace is asked, by its record."""
        tls = TlsOptions()
        if endpoint.certificate is not None:
            shown = endpoint.client_certificate
            tls = TlsOptions(
                pinned=Path(endpoint.certificate),
                certificate=None if shown is None else Path(shown),
            )
        return cls(token=SecretStr(admin_token) if admin_token else None, tls=tls)

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Return how a server that this workspace does not know is asked.

        Raises:
            UsageError: A file cannot be read, or holds no secret.
        """
        return cls(
            api_key=_secret(settings.api_key_file, "API key") or settings.api_key,
            token=_secret(settings.token_file, "token") or settings.token,
            tls=TlsOptions(
                authorities=settings.ca_file,
                certificate=settings.cert_file,
                key=settings.cert_key_file,
            ),
        )

    def headers(self) -> dict[str, str]:
        """Return the header fields that say who asks."""
        key, token = self.api_key, self.token
        return client_headers(
            None if key is None else key.get_secret_value(),
            None if token is None else token.get_secret_value(),
        )

    def context(self) -> ssl.SSLContext:
        """Return the context of TLS connections.

        Raises:
            UsageError: A certificate cannot be read.
        """
        return tls_context(self.tls)


OPEN = Access()
"""Nothing to show, and the authorities of this machine to trust."""


def _secret(path: Path | None, what: str) -> SecretStr | None:
    """Read the one line of a file."""
    if path is None:
        return None
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            text = file.read(_LONGEST).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"the {what} cannot be read from {path}: {exc}", hint="check it") from exc
    if not text or not text.isprintable() or " " in text:
        raise UsageError(f"{path} holds no {what}", hint="put it there alone, on one line")
    return SecretStr(text)
