"""API keys of a workspace: shown once, kept as hashes, revoked at once.

    security/keys.json   {"format": 1, "keys": [{id, name, digest, models, …}]}, owner only

A key holds 256 random bits, so one round of SHA-256 hides it: there is nothing to guess. Revoked
keys stay in the file, so that revoking the last one never opens a server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from fairlead.core.errors import ConflictError, NotFoundError, WorkspaceError
from fairlead.core.files import translated_os_errors, write_json
from fairlead.core.values import Value

__all__ = ["KEY_PREFIX", "ApiKey", "KeyFile", "KeyRing"]

_log = logging.getLogger(__name__)
KEY_PREFIX = "flk_"
_FORMAT = 1
_LOOK_EVERY_S = 0.5


class ApiKey(Value):
    """What is remembered of a key; the key itself is not."""

    id: str
    """Public part of the key, as it stands in logs."""
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")
    """Who has it."""
    digest: str = Field(repr=False)
    """SHA-256 of the key, hexadecimal."""
    models: tuple[str, ...] | None = None
    """Models that it may ask; None for all."""
    is_admin: bool = False
    """Whether it may administer the server."""
    rate_rps: float | None = Field(None, gt=0)
    """Most requests per second on average, over all workers; None takes the service's default."""
    burst: int | None = Field(None, ge=1)
    """Requests that may come at once, where there is a limit; None takes one second's worth."""
    created_at: datetime
    """When it was made."""
    expires_at: datetime | None = None
    """When it ends; None never."""
    revoked_at: datetime | None = None
    """When it was revoked; None when it holds."""

    def why_not(self, now: datetime | None = None) -> str | None:
        """Return why the key does not hold, or None when it does."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and (now or datetime.now(UTC)) >= self.expires_at:
            return f"expired at {self.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        return None


class KeyFile:
    """The keys of a workspace on disk; several processes may change it at once."""

    def __init__(self, path: Path) -> None:
        """Remember where the file is; it need not exist."""
        self.path = path

    def read(self) -> list[ApiKey]:
        """Return every key, revoked ones included; none when there is no file.

        Raises:
            WorkspaceError: The file cannot be read or was not written by Fairlead.
        """
        try:
            document = json.loads(self.path.read_text())
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r}, expected {_FORMAT}")
            return [ApiKey.model_validate(item) for item in document["keys"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, ValidationError) as exc:
            raise WorkspaceError(
                f"the file of API keys {self.path} cannot be read: {type(exc).__name__}",
                hint="restore it from a copy; servers go on with the keys that they know",
            ) from exc

    def add(
        self,
        name: str,
        *,
        models: tuple[str, ...] | None = None,
        is_admin: bool = False,
        rate_rps: float | None = None,
        burst: int | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key.

        Args:
            name: Who gets it.
            models: Models that it may ask; None for all.
            is_admin: Whether it may administer the server.
            rate_rps: Most requests per second on average.
            burst: Requests that may come at once.
            expires_at: When it ends.

        Returns:
            What is remembered of it, and the key, which is not kept anywhere.

        Raises:
            ConflictError: A key of that name holds already.
            WorkspaceError: The file cannot be read or written.
        """
        key_id = secrets.token_hex(4)
        text = f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        key = ApiKey(
            id=key_id,
            name=name,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            models=models,
            is_admin=is_admin,
            rate_rps=rate_rps,
            burst=burst,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        with self._locked():
            keys = self.read()
            if any(item.name == name and item.why_not() is None for item in keys):
                raise ConflictError(
                    f"there is a key named `{name}` already",
                    hint=f"choose another name, or `fairlead serve keys revoke {name}` first",
                )
            self._write([*keys, key])
        return key, text

    def revoke(self, which: str) -> list[ApiKey]:
        """Revoke the keys of a name or an id; running servers refuse them within a second.

        Raises:
            NotFoundError: No key of that name or id holds.
            WorkspaceError: The file cannot be read or written.
        """
        now = datetime.now(UTC)
        with self._locked():
            keys = self.read()
            ended = [
                key.model_copy(update={"revoked_at": now})
                for key in keys
                if which in {key.id, key.name} and key.revoked_at is None
            ]
            if not ended:
                raise NotFoundError(
                    f"no key named {which[:64]!r} holds",
                    hint="`fairlead serve keys list` shows all",
                )
            changed = {key.id: key for key in ended}
            self._write([changed.get(key.id, key) for key in keys])
        return ended

    def _write(self, keys: list[ApiKey]) -> None:
        document = {"format": _FORMAT, "keys": [key.model_dump(mode="json") for key in keys]}
        write_json(self.path, document, mode=0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.path.with_suffix(".lock")
        with translated_os_errors(lock, "the lock of the API keys"):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class KeyRing:
    """The keys in the memory of a server; looks at the file again twice a second at most."""

    def __init__(self, file: KeyFile) -> None:
        """Read the file.

        Raises:
            WorkspaceError: It cannot be read.
        """
        self._file = file
        self._by_digest: dict[bytes, ApiKey] = {}
        self._stamp: object = None
        self._next_look = 0.0
        self.has_keys = False
        """Whether a key was ever made: from then on every request needs credentials."""
        self._load(self._stat())

    def refresh(self) -> None:
        """Read the file when it changed; costs a comparison of times in between."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        stamp = self._stat()
        if stamp == self._stamp:
            return
        try:
            self._load(stamp)
        except WorkspaceError as exc:
            _log.warning("%s; the keys read before stay in force", exc)

    def find(self, text: str) -> ApiKey | None:
        """Return the key that this text is, whether it holds or not."""
        return self._by_digest.get(hashlib.sha256(text.encode("utf-8", "replace")).digest())

    def _stat(self) -> object:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _load(self, stamp: object) -> None:
        keys = self._file.read()
        self._stamp = stamp
        self._by_digest = {bytes.fromhex(key.digest): key for key in keys}
        # A file that vanished must not open the server.
        self.has_keys = self.has_keys or bool(keys)
