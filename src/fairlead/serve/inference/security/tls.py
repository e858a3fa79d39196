"""TLS for whatever listens: contexts that follow their files, and who a client is.

Certificates are read again when they change, so a renewal needs no restart; a pair that does not
fit together while it is being replaced leaves the old one in force.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

from fairlead.core.errors import ConfigError
from fairlead.serve.inference.security.config import TlsConfig

__all__ = ["TlsFiles", "open_server_context"]

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class TlsFiles:
    """The files of a `TlsConfig`, and whether they changed."""

    def __init__(self, config: TlsConfig) -> None:
        """Remember the files as they are now."""
        self.config = config
        self._stamp = self._stat()
        self._next_look = 0.0

    def has_changed(self) -> bool:
        """Return whether a file changed since the last `True`; looks once a second at most."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK_EVERY_S
        stamp = self._stat()
        if stamp == self._stamp or None in stamp:
            return False
        self._stamp = stamp
        return True

    def _stat(self) -> list[tuple[int, int, int] | None]:
        paths = [self.config.certificate, self.config.key]
        if self.config.client_ca is not None:
            paths.append(self.config.client_ca)
        return [_stamp(path) for path in paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def open_server_context(
    config: TlsConfig, *, protocols: tuple[str, ...] = ("http/1.1",), own: str | None = None
) -> ssl.SSLContext:
    """Return a context for a listener: TLS 1.2 or newer, forward secrecy, certificates reloaded.

    Args:
        config: Certificates, and whether clients must show one.
        protocols: Application protocols to offer, best first.
        own: PEM file with the certificate of Fairlead's own commands, which is trusted, too.

    Raises:
        ConfigError: A file cannot be read, or certificate and key do not fit together.
    """
    return _ListenerContext.of(config, protocols, own)


class _ListenerContext(ssl.SSLContext):
    """Hands every connection to the context that was made of the files as they are now.

    To change the context in the middle of a handshake would be too late: OpenSSL looks for the
    session that a client resumes in the context that the handshake began with, so that a client
    whose authority is gone would come in for as long as its session lasts.
    """

    _make: Callable[[], ssl.SSLContext]
    _files: TlsFiles
    _current: ssl.SSLContext

    @classmethod
    def of(cls, config: TlsConfig, protocols: tuple[str, ...], own: str | None) -> Self:
        found = cls(ssl.PROTOCOL_TLS_SERVER)
        found._files = TlsFiles(config)
        found._make = partial(_build, config, protocols, own)
        found._current = found._make()
        return found

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if self._files.has_changed():
            try:
                self._current = self._make()
                _log.info("the certificate in %s was read again", self._files.config.certificate)
            except ConfigError as exc:
                _log.warning("%s; the certificate read before stays in force", exc)
        return self._current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def _build(config: TlsConfig, protocols: tuple[str, ...], own: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if config.client_ca is not None:
        # Who resumes a session shows no certificate: one that ended would still be believed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    context.set_alpn_protocols(list(protocols))
    try:
        # A key with a password would otherwise ask for it on the terminal.
        context.load_cert_chain(config.certificate, config.key, password=lambda: "")
        if config.client_ca is not None:
            context.load_verify_locations(config.client_ca)
        if own is not None:
            context.load_verify_locations(own)
    except (OSError, ValueError) as exc:
        raise _unusable(config, exc) from exc
    if config.client_ca is not None:
        is_required = config.is_client_required
        context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
    return context


def _unusable(config: TlsConfig, error: Exception) -> ConfigError:
    paths = [config.certificate, config.key]
    if config.client_ca is not None:
        paths.append(config.client_ca)
    missing = [str(path) for path in paths if not path.is_file()]
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no PEM files"
    if reason == "KEY_VALUES_MISMATCH":
        reason = f"the key in {config.key} does not belong to it"
    what = f"there is no file {missing[0]}" if missing else f"{config.certificate}: {reason}"
    return ConfigError(
        f"the certificates cannot be used: {what}",
        hint="give PEM files of a certificate with its chain and of its key without a password",
    )
