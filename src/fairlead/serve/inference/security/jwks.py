"""The public keys of an identity provider: from a file or a URL, kept, and read again in time."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fairlead.core.errors import ConfigError
from fairlead.core.extras import requires

if TYPE_CHECKING:
    from jwt import PyJWK

__all__ = ["KeySet", "open_key_set"]

_log = logging.getLogger(__name__)
_MAX_BYTES = 1 << 20
_TIMEOUT_S = 5.0
_COOLDOWN_S = 5.0
_FILE_LOOK_S = 1.0
_FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class KeySet:
    """Keys by id; a thread fetches them again, so that no request waits for a provider."""

    def __init__(self, *, url: str | None, file: Path | None, refresh_s: float) -> None:
        """Read the keys once; a provider that does not answer yet is asked again.

        Args:
            url: Where the provider publishes them.
            file: File that holds them instead.
            refresh_s: Time after which they are fetched again, in seconds.

        Raises:
            ConfigError: The file cannot be read, or the URL is not safe.
        """
        self._url = None if url is None else _checked_url(url)
        self._file = file
        self._refresh_s = refresh_s
        self._keys: dict[str | None, list[PyJWK]] = {}
        self._stamp: object = None
        self._lock = threading.Lock()
        self._fetching: Future[None] | None = None
        self._next_fetch = 0.0
        self._earliest_fetch = 0.0
        self.generation = 0
        """Grows with every change of the keys, so that verdicts over old ones are forgotten."""
        if file is not None:
            self._read_file(file)
        else:
            self._fetch()

    def refresh(self) -> None:
        """Look for new keys where it is time to; never waits for a network."""
        now = time.monotonic()
        if now < self._next_fetch:
            return
        if self._file is None:
            self.fetch_soon()
            return
        self._next_fetch = now + _FILE_LOOK_S
        try:
            self._read_file(self._file)
        except ConfigError as exc:
            _log.warning("%s; the keys read before stay in force", exc)

    def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key of an id that suits an algorithm; without an id, the only one there is."""
        family = _FAMILIES[algorithm[:2]]
        if key_id is not None:
            found = self._keys.get(key_id, [])
        else:
            found = [key for keys in self._keys.values() for key in keys]
        suited = [
            key for key in found if key.key_type == family and _declared(key) in {None, algorithm}
        ]
        return suited[0] if len(suited) == 1 else None

    def fetch_soon(self) -> Future[None] | None:
        """Start to fetch the keys, or join a fetch under way; None where it is too early."""
        if self._url is None:
            return None
        with self._lock:
            if self._fetching is not None:
                return self._fetching
            now = time.monotonic()
            if now < self._earliest_fetch:
                return None
            # Unknown ids in hostile tokens must not make us hammer the provider.
            self._earliest_fetch = now + _COOLDOWN_S
            done: Future[None] = Future()
            self._fetching = done
        threading.Thread(target=self._run, args=(done,), name="fairlead-jwks", daemon=True).start()
        return done

    def _run(self, done: Future[None]) -> None:
        try:
            self._fetch()
        finally:
            with self._lock:
                self._fetching = None
            done.set_result(None)

    def _fetch(self) -> None:
        self._next_fetch = time.monotonic() + self._refresh_s
        try:
            self._take(_download(self._url or ""))
        except (OSError, ValueError) as exc:
            self._next_fetch = time.monotonic() + min(self._refresh_s, 4 * _COOLDOWN_S)
            _log.warning("the keys at %s cannot be fetched: %s", self._url, exc)

    def _read_file(self, file: Path) -> None:
        try:
            found = file.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return
            self._take(file.read_bytes())
            self._stamp = stamp
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"the key set {file} cannot be read: {exc}", hint="give a JSON Web Key Set"
            ) from exc

    def _take(self, raw: bytes) -> None:
        keys = _parsed(raw)
        if not keys:
            raise ValueError("it holds no public key for signatures")
        self._keys = keys
        self.generation += 1


def open_key_set(url: str | None, file: Path | None, refresh_s: float) -> KeySet | None:
    """Return the keys of a file or a URL; None where neither is given.

    Raises:
        ConfigError: The file cannot be read, or the URL is not safe.
    """
    if url is None and file is None:
        return None
    return KeySet(url=url, file=file, refresh_s=refresh_s)


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return url
    raise ConfigError(
        f"`jwks_url` is {url!r}, expected https, or http on this machine",
        hint="keys that anyone on the way can replace prove nothing",
    )


def _download(url: str) -> bytes:
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """A redirect could lead away from https."""

        def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            return None

    opener = urllib.request.build_opener(NoRedirect)
    with opener.open(url, timeout=_TIMEOUT_S) as answer:
        raw: bytes = answer.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    return raw


def _parsed(raw: bytes) -> dict[str | None, list[PyJWK]]:
    """Return the usable keys by id; shared secrets in a public document are none."""
    import json

    with requires("serve", needed_by="tokens of an identity provider"):
        from jwt import PyJWK
        from jwt.exceptions import PyJWTError

    document = json.loads(raw)
    items = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ValueError("it is no JSON Web Key Set")
    found: dict[str | None, list[PyJWK]] = {}
    for item in items:
        if not isinstance(item, dict) or item.get("kty") not in set(_FAMILIES.values()):
            continue
        if item.get("use", "sig") != "sig" or "verify" not in item.get("key_ops", ["verify"]):
            continue
        try:
            key = PyJWK.from_dict(item)
        except PyJWTError as exc:
            _log.warning("a key of the set is left out: %s", exc)
            continue
        found.setdefault(key.key_id, []).append(key)
    return found


def _declared(key: PyJWK) -> str | None:
    """Return the algorithm that the provider declared for the key, or None."""
    data: dict[str, Any] = getattr(key, "_jwk_data", {})
    found = data.get("alg")
    return found if isinstance(found, str) else None
