"""The audit log: one JSON line per call of administration, per refused call, or per call.

    audit/<service>.admin.jsonl     who changed or read how the server is run
    audit/<service>.refused.jsonl   who was refused, and why
    audit/<service>.requests.jsonl  every other call, where asked for

A file per kind, so that a flood of refused calls pushes no call of administration out. Several
workers write at once: a line is one append. Callers stand there by name and id, never by secret.
A change has two lines of one `call`: one with `phase` `begun` is on the disk before anything is
done, one with the status is written before the answer leaves.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fairlead.core.files import translated_os_errors

__all__ = ["AuditLog", "Stream"]

_log = logging.getLogger(__name__)
Stream = Literal["admin", "refused", "requests"]
_LONGEST = 256


class AuditLog:
    """Appends lines; safe for several threads and processes."""

    def __init__(
        self, folder: Path, service: str, *, max_bytes: int = 10 << 20, keep: int = 5
    ) -> None:
        """Create the folder.

        Args:
            folder: Where the files go.
            service: Name of the service.
            max_bytes: Size after which a file is put aside.
            keep: Files that are kept beside the current one.

        Raises:
            WorkspaceError: The folder cannot be written.
        """
        self._folder = folder
        self._service = service
        self._max_bytes = max_bytes
        self._keep = keep
        self._open: dict[Stream, int] = {}
        self._lock = threading.Lock()
        self._is_failing = False
        with translated_os_errors(folder, "the audit log"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(self._opened(folder / f".{service}.lock"))

    def write(
        self,
        stream: Stream,
        *,
        caller: str,
        peer: str,
        method: str,
        path: str,
        status: int | None,
        model: str | None = None,
        reason: str = "",
        call: str = "",
    ) -> bool:
        """Append one line; a log that cannot be written is reported once.

        Args:
            stream: Which file.
            caller: Name of the caller, or "".
            peer: Its address.
            method: What it did.
            path: To what.
            status: HTTP status that it got; None for a change that begins, which is on the disk
                when this returns.
            model: The model that it asked for.
            reason: Why it was refused.
            call: Id that the lines of one change share.

        Returns:
            Whether the line was written.
        """
        document: dict[str, object] = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "service": self._service,
            "caller": caller[:_LONGEST],
            "peer": peer[:_LONGEST],
            "method": method[:_LONGEST],
            "path": path.partition("?")[0][:_LONGEST],
        }
        document |= {"phase": "begun"} if status is None else {"status": status}
        if call:
            document["call"] = call
        if model is not None:
            document["model"] = model[:_LONGEST]
        if reason:
            document["reason"] = reason[:_LONGEST]
        line = json.dumps(document).encode() + b"\n"
        try:
            with self._lock:
                handle = self._current(stream, len(line))
                os.write(handle, line)
                if status is None:
                    os.fsync(handle)
        except OSError as exc:
            if not self._is_failing:
                _log.error("the audit log in %s cannot be written: %s", self._folder, exc)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def path(self, stream: Stream) -> Path:
        """Return the file that is written now."""
        return self._folder / f"{self._service}.{stream}.jsonl"

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for handle in self._open.values():
                os.close(handle)
            self._open.clear()

    def _current(self, stream: Stream, size: int) -> int:
        handle = self._open.get(stream)
        if handle is None or not self._is_current(handle, self.path(stream)):
            handle = self._reopen(stream)
        if os.fstat(handle).st_size + size <= self._max_bytes:
            return handle
        self._rotate(stream, size)
        return self._reopen(stream)

    def _reopen(self, stream: Stream) -> int:
        old = self._open.pop(stream, None)
        if old is not None:
            os.close(old)
        handle = self._open[stream] = self._opened(self.path(stream), os.O_APPEND)
        return handle

    @staticmethod
    def _opened(path: Path, flags: int = 0) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)

    @staticmethod
    def _is_current(handle: int, path: Path) -> bool:
        """Say whether the file still has its name: another worker may have put it aside."""
        try:
            return os.path.samestat(os.fstat(handle), path.stat())
        except OSError:
            return False

    def _rotate(self, stream: Stream, size: int) -> None:
        path = self.path(stream)
        lock = self._opened(self._folder / f".{self._service}.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if path.stat().st_size + size <= self._max_bytes:
                    return  # Another worker was faster.
                for number in range(self._keep - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        self._aside(path, number).replace(self._aside(path, number + 1))
                path.replace(self._aside(path, 1))
        finally:
            os.close(lock)

    @staticmethod
    def _aside(path: Path, number: int) -> Path:
        return path.with_name(f"{path.name}.{number}")
