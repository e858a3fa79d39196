"""The process that turns spools of the prediction log into Parquet, out of the server's way.

python -m fairlead.backends.segment_process FOLDER DAYS BYTES SERVICE …
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fairlead.backends.prediction_retention import FOREVER, Retention, overdue
from fairlead.backends.prediction_spool import SUFFIX
from fairlead.backends.services import check_service_name
from fairlead.core.files import translated_os_errors

__all__ = ["SegmentProcess", "has_spools", "prepare_folder"]

_log = logging.getLogger(__name__)
_LAST_S = 20.0
_LOWEST_PRIORITY = 19


def prepare_folder(folder: Path, service: str) -> None:
    """Create the folder of a service.

    Raises:
        WorkspaceError: It cannot be written.
    """
    target = folder / check_service_name(service)
    with translated_os_errors(target, "the prediction log"):
        target.mkdir(parents=True, exist_ok=True)
        probe = target / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()


def has_spools(folder: Path, service: str) -> bool:
    """Say whether there are spools of a service, for example of a server that was killed."""
    return any((folder / service).glob(f"*{SUFFIX}"))


class SegmentProcess:
    """Starts the process when there is something to do, one at a time."""

    def __init__(self, folder: Path, spool_bytes: int, keep: Retention = FOREVER) -> None:
        """Prepare.

        Args:
            folder: The folder of all services.
            spool_bytes: Size of the waiting spools of a service at which no more are wanted.
            keep: How long segments are kept.
        """
        self._keep = keep
        self._folder = folder
        self._spool_bytes = spool_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self.is_full = False
        """Whether the spools wait for room and time to become segments."""

    def is_due(self, service: str) -> bool:
        """Say whether there are spools of earlier processes, or segments that are to go."""
        place = self._folder / service
        return has_spools(self._folder, service) or bool(overdue(place, self._keep))

    def make(self, services: Sequence[str], *, is_last: bool = False) -> None:
        """Have spools turned into segments.

        Args:
            services: Services that may have spools which nobody writes to any more.
            is_last: Whether to wait until it is done; what is not is left to the next process.
        """
        if not services:
            return
        self.is_full = any(self._held(service) > self._spool_bytes for service in services)
        if "pyarrow.parquet" in sys.modules:
            # The weight that the process keeps away from this one is here already.
            from fairlead.backends.prediction_segments import make_segments

            for service in services:
                make_segments(self._folder, service, self._keep)
            return
        self._start(services, is_last=is_last)

    def _start(self, services: Sequence[str], *, is_last: bool) -> None:
        if self._process is not None and self._process.poll() is None and not is_last:
            return
        try:
            if self._process is not None:
                self._process.wait(_LAST_S)
            keep = [json.dumps(limit) for limit in self._keep]
            command = [sys.executable, "-m", __name__, str(self._folder), *keep, *services]
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and arguments)
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            if is_last:
                self._process.wait(_LAST_S)
        except (OSError, subprocess.TimeoutExpired) as exc:
            _log.warning("spools of %s stay as they are for now: %s", ", ".join(services), exc)

    def _held(self, service: str) -> int:
        size = 0
        for path in (self._folder / service).glob(f"*{SUFFIX}"):
            try:
                size += path.stat().st_size
            except FileNotFoundError:
                continue  # It became a segment meanwhile.
        return size


def _main(folder: str, days: str, n_bytes: str, *services: str) -> None:
    from fairlead.backends.prediction_segments import make_segments

    os.nice(_LOWEST_PRIORITY)
    for service in services:
        make_segments(Path(folder), service, Retention(json.loads(days), json.loads(n_bytes)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
