"""How long the prediction log is kept: whole segments go, the oldest first, and are counted.

    predictions/<service>/expired.json   what was removed so far
    predictions/<service>/.reading       locked by readers; while it is, nothing is removed

Only segments are ever removed. What is not in Parquet yet is newer than every segment.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from fairlead.backends.prediction_spool import STAMP_FORMAT
from fairlead.core.files import write_json

__all__ = ["FOREVER", "Expired", "Retention", "expire", "expired", "overdue", "reading"]

_log = logging.getLogger(__name__)
_COUNTS = "expired.json"
_LOCK = ".reading"
_DAY_S = 86_400.0


class Retention(NamedTuple):
    """How long segments are kept.

    Attributes:
        days: Days since they were written; None keeps them for ever.
        n_bytes: Disk for all segments of a service; None is no limit.
    """

    days: float | None = None
    n_bytes: int | None = None


FOREVER = Retention()


class Expired(NamedTuple):
    """What was removed from the log of a service.

    Attributes:
        segments: Files.
        rows: Predictions in them.
        n_bytes: Their size.
    """

    segments: int = 0
    rows: int = 0
    n_bytes: int = 0


def expired(place: Path) -> Expired:
    """Return what was removed so far from the log in a folder."""
    try:
        found = json.loads((place / _COUNTS).read_text())
        return Expired(int(found["segments"]), int(found["rows"]), int(found["n_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Expired()


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Keep every segment of a folder where it is while the block runs."""
    try:
        handle = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield  # There is no log, or it lies where nobody may write: nothing is removed there.
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def overdue(place: Path, keep: Retention) -> list[Path]:
    """Return the segments of a folder that are to go, the oldest first."""
    found = []
    for path in sorted(place.glob("*.parquet")):
        with suppress(FileNotFoundError):
            found.append((path, path.stat().st_size))
    left = sum(size for _, size in found)
    late = []
    for path, size in found:
        is_old = keep.days is not None and _age_s(path) > keep.days * _DAY_S
        is_much = keep.n_bytes is not None and left > keep.n_bytes
        if not is_old and not is_much:
            break  # Those behind it are newer.
        late.append(path)
        left -= size
    return late


def expire(place: Path, keep: Retention) -> Expired:
    """Remove the segments of a folder that are to go, unless somebody reads at the moment.

    Returns:
        What was removed this time.

    Raises:
        WorkspaceError: What is removed cannot be counted; then nothing is.
    """
    if not overdue(place, keep):
        return Expired()
    handle = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return Expired()  # The next time will do.
    try:
        return _remove(place, overdue(place, keep))
    finally:
        os.close(handle)


def _remove(place: Path, late: list[Path]) -> Expired:
    before, gone = expired(place), Expired()
    for path in late:
        size, rows = path.stat().st_size, _rows_of(path)
        gone = Expired(gone.segments + 1, gone.rows + rows, gone.n_bytes + size)
        total = Expired(*(old + new for old, new in zip(before, gone, strict=True)))
        # Counted first: a removal that is not counted would be a loss that nobody sees.
        write_json(place / _COUNTS, total._asdict())
        path.unlink(missing_ok=True)
    _log.info("removed %d old segments of %s with %d rows", gone.segments, place.name, gone.rows)
    return gone


def _rows_of(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return 0  # It is damaged, and nobody could have read it either.


def _age_s(path: Path) -> float:
    """Return how long ago a segment was written; its name tells, else its file does."""
    try:
        made = datetime.strptime(path.name.split("-")[0], STAMP_FORMAT).replace(tzinfo=UTC)
        return time.time() - made.timestamp()
    except ValueError:
        return time.time() - path.stat().st_mtime
