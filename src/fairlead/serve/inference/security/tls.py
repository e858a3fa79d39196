"""TLS for whatever listens: contexts that follow their files, and who a client is.

Certificates are read again when they change, so a renewal needs no restart; a pair that does not
fit together while it is being replaced leaves the old one in force.
"""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

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
    files = TlsFiles(config)
    current = _build(config, protocols, own)

    def choose(handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal current
        if files.has_changed():
            try:
                current = _build(config, protocols, own)
                _log.info("the certificate in %s was read again", config.certificate)
            except ConfigError as exc:
                _log.warning("%s; the certificate read before stays in force", exc)
        handshake.context = current

    front = _build(config, protocols, own)
    front.sni_callback = choose
    return front


def _build(config: TlsConfig, protocols: tuple[str, ...], own: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
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
    what = f"there is no file {missing[0]}" if missing else f"{config.certificate}: {reason}"
    return ConfigError(
        f"the certificates cannot be used: {what}",
        hint="give PEM files of a certificate with its chain and of its key without a password",
    )
