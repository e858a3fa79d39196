"""The spool of the prediction log: frames that are safe as soon as they are written.

    predictions/<service>/20260131T120000123456-4711-1.spool

One file per writing process and bundle, locked for as long as it is written to. Its first frame
says what the bundle is, each further one holds some requests: their tensors as they are, or
columns where rules hide some of them. A spool that nobody locks is turned into a Parquet segment
(see `prediction_segments`) and removed.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fairlead.backends.logged_request import RequestColumns
from fairlead.backends.prediction_encoding import FrameEncoder, encode_head
from fairlead.backends.prediction_rules import LogRules, is_kept
from fairlead.backends.services import check_service_name
from fairlead.core.bundle import BundleManifest
from fairlead.core.files import translated_os_errors
from fairlead.core.prediction import Prediction

__all__ = ["STAMP_FORMAT", "SUFFIX", "SpoolFile", "SpoolWriter", "Written"]

SUFFIX = ".spool"
STAMP_FORMAT = "%Y%m%dT%H%M%S%f"
_counter = itertools.count(1)


class SpoolFile:
    """One locked file that grows by whole frames."""

    def __init__(self, folder: Path, head: bytes) -> None:
        """Make the file.

        Args:
            folder: The folder of the service; it is made when it does not exist.
            head: The first frame.

        Raises:
            OSError: It cannot be made, or the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._handle = _new_locked(folder)
        self.size = 0
        self.opened_at = time.monotonic()
        try:
            self.append(head)
        except OSError:
            with suppress(OSError):
                self.path.unlink()
            self.close()
            raise

    def append(self, frames: bytes) -> None:
        """Write frames; when that fails the file ends where it ended before.

        Raises:
            OSError: The disk is full or gone.
        """
        rest = memoryview(frames)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self.size)
            os.lseek(self._handle, self.size, os.SEEK_SET)
            raise
        self.size += len(frames)

    def sync(self) -> None:
        """Wait until the disk holds what was written.

        Raises:
            OSError: The disk failed.
        """
        os.fdatasync(self._handle)

    def close(self) -> None:
        """Give the file up; from now on it may be turned into a segment."""
        os.close(self._handle)


def _new_locked(folder: Path) -> tuple[Path, int]:
    while True:
        name = f"{datetime.now(UTC):{STAMP_FORMAT}}-{os.getpid()}-{next(_counter)}{SUFFIX}"
        path = folder / name
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody who clears away empty spools may have been faster.
            if os.fstat(handle).st_nlink:
                return path, handle
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Written:
    """How many rows were written, and how many the rules left out."""

    n_rows: int
    n_left_out: int


_Key = tuple[str, str, bool]


class SpoolWriter:
    """The open spools of one process; used by one thread at a time."""

    def __init__(self, folder: Path, rules: LogRules) -> None:
        """Prepare; files are made when there is something to write.

        Args:
            folder: The folder of all services.
            rules: What is kept and hidden.
        """
        self._folder = folder
        self._rules = rules
        self._encoder = FrameEncoder(folder, rules)
        self._files: dict[_Key, SpoolFile] = {}

    @property
    def size(self) -> int:
        """Bytes in the open files."""
        return sum(file.size for file in self._files.values())

    @property
    def age_s(self) -> float:
        """Seconds since the oldest open file was made; 0 when none is open."""
        opened = [file.opened_at for file in self._files.values()]
        return time.monotonic() - min(opened) if opened else 0.0

    def write_requests(self, group: RequestColumns) -> Written:
        """Append requests, or the share of them that the rules keep.

        Raises:
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        kept = self._sampled(group)
        n_rows = sum(kept.n_rows)
        if n_rows:
            self._append((kept.service, kept.bundle_digest, False), kept.manifest,
                         self._encoder.encode_requests(kept))  # fmt: skip
        return Written(n_rows, sum(group.n_rows) - n_rows)

    def write_prediction(self, prediction: Prediction) -> Written:
        """Append one prediction that is already in columns, unless the rules leave it out.

        Raises:
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        rate = self._rules.rate(
            model=prediction.service, version=prediction.version,
            arm=prediction.arm, status=prediction.status,
        )  # fmt: skip
        if not is_kept(prediction.id, rate):
            return Written(0, 1)
        key = (prediction.service, prediction.bundle_digest, True)
        self._append(key, None, self._encoder.encode_prediction(prediction))
        return Written(1, 0)

    def sync(self) -> None:
        """Wait until the disk holds everything that was written.

        Raises:
            WorkspaceError: The disk failed.
        """
        for file in self._files.values():
            with translated_os_errors(file.path, "the prediction log"):
                file.sync()

    def seal(self) -> tuple[str, ...]:
        """Give up all open files; returns the services that had some."""
        services = tuple(dict.fromkeys(service for service, _, _ in self._files))
        for file in self._files.values():
            file.close()
        self._files.clear()
        return services

    def _append(self, key: _Key, manifest: BundleManifest | None, frames: bytes) -> None:
        folder = self._folder / check_service_name(key[0])
        with translated_os_errors(folder, "the prediction log"):
            file = self._files.get(key)
            if file is None:
                head = encode_head(key[0], key[1], manifest)
                file = self._files[key] = SpoolFile(folder, head)
            file.append(frames)

    def _sampled(self, group: RequestColumns) -> RequestColumns:
        if not self._rules.sample:
            return group
        rates: dict[tuple[str, int], float] = {}
        places = []
        for place, (arm, status) in enumerate(zip(group.arm, group.status, strict=True)):
            rate = rates.get((arm, status))
            if rate is None:
                rate = rates[arm, status] = self._rules.rate(
                    model=group.service, version=group.version, arm=arm, status=status
                )
            if is_kept(group.id[place], rate):
                places.append(place)
        return group if len(places) == len(group.id) else group.chosen(places)
