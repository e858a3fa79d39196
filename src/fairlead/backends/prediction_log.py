"""The prediction log: Parquet segments that appear whole or not at all.

    predictions/<service>/20260131T120000123456-4711-1.parquet

Callers only put arrays into a bounded buffer; a thread of its own turns them into columns and
writes a segment every few seconds. What does not fit into the buffer is dropped and counted, and
a process that is killed loses no more than its buffer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fairlead.backends.logged_request import LoggedRequest
from fairlead.backends.prediction_segments import (
    Window,
    prepare_folder,
    read_segments,
    write_segments,
)
from fairlead.core.errors import WorkspaceError
from fairlead.core.ports import Feeds
from fairlead.core.prediction import Prediction, PredictionBatch

__all__ = ["LoggedRequest", "ParquetPredictionLog"]

_log = logging.getLogger(__name__)
_TEXT_BYTES = 64
_PREDICTION_BYTES = 2048


class ParquetPredictionLog:
    """Predictions in a folder; implements the port `PredictionLog`, safe for several threads."""

    def __init__(
        self,
        folder: Path,
        *,
        flush_s: float = 2.0,
        flush_rows: int = 20_000,
        buffer_bytes: int = 64 << 20,
    ) -> None:
        """Prepare the log; nothing is written or started before the first prediction.

        Args:
            folder: The folder of all services, `Workspace.predictions`.
            flush_s: Longest time a prediction waits in the buffer, in seconds.
            flush_rows: Rows in the buffer that are written without waiting.
            buffer_bytes: Memory of the buffer; further predictions are dropped and counted.
        """
        self._folder = Path(folder)
        self._flush_s = flush_s
        self._flush_rows = flush_rows
        self._buffer_bytes = buffer_bytes
        self._buffer: list[LoggedRequest | Prediction] = []
        self._rows = 0
        self._bytes = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._n_written = 0
        self._n_dropped = 0

    @property
    def n_written(self) -> int:
        """Rows that were written so far."""
        return self._n_written

    @property
    def n_dropped(self) -> int:
        """Rows that were lost so far: the buffer was full, or writing failed to the end."""
        return self._n_dropped

    def prepare(self, service: str) -> None:
        """Load what writing needs, and find out early when the folder cannot be written.

        Raises:
            WorkspaceError: It cannot.
        """
        prepare_folder(self._folder, service)

    def append_request(self, request: LoggedRequest) -> None:
        """Buffer the rows of one request; takes about a microsecond and never blocks on disk."""
        size = _size(request.feeds)
        if request.outputs is not None:
            size += _size(request.outputs)
        self._put(request, request.n_rows, size)

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Buffer predictions; `flush` makes them durable."""
        for prediction in predictions:
            self._put(prediction, 1, _PREDICTION_BYTES)

    def flush(self) -> None:
        """Write what is buffered; when that fails it stays in the buffer.

        Raises:
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        with self._writing:
            entries, rows, size = self._take()
            if not entries:
                return
            try:
                written = write_segments(self._folder, entries)
            except WorkspaceError:
                self._put_back(entries, rows, size)
                raise
            self._n_written += written
            self._n_dropped += rows - written

    def close(self) -> None:
        """Write what is buffered and stop; what cannot be written now is lost and counted."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except WorkspaceError as exc:
            _log.warning("%d predictions are lost: %s", self._rows, exc)
            _, rows, _ = self._take()
            self._n_dropped += rows

    def read(
        self,
        service: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        version: str | None = None,
        limit: int | None = None,
    ) -> PredictionBatch | None:
        """Return logged predictions in order of time, or None when there are none.

        Args:
            service: Name of the service.
            since: Only predictions at or after this time; a time without a zone is UTC.
            until: Only predictions before this time.
            version: Only predictions of this version.
            limit: At most this many, the newest ones.

        Raises:
            UsageError: The name cannot be that of a service.
        """
        window = Window(since=since, until=until, version=version, limit=limit)
        return read_segments(self._folder, service, window)

    def _put(self, entry: LoggedRequest | Prediction, rows: int, size: int) -> None:
        with self._changed:
            if self._is_closed or self._bytes + size > self._buffer_bytes:
                self._n_dropped += rows
                return
            self._buffer.append(entry)
            self._rows += rows
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_on, name="fairlead-prediction-log", daemon=True
                )
                self._thread.start()
            if self._rows >= self._flush_rows:
                self._changed.notify_all()

    def _take(self) -> tuple[list[LoggedRequest | Prediction], int, int]:
        with self._changed:
            taken = (self._buffer, self._rows, self._bytes)
            self._buffer, self._rows, self._bytes = [], 0, 0
        return taken

    def _put_back(self, entries: list[LoggedRequest | Prediction], rows: int, size: int) -> None:
        with self._changed:
            self._buffer = entries + self._buffer
            self._rows += rows
            self._bytes += size

    def _write_on(self) -> None:
        while True:
            deadline = time.monotonic() + self._flush_s
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or self._rows >= self._flush_rows,
                    timeout=self._flush_s,
                )
                if self._is_closed:
                    return
            try:
                self.flush()
            except WorkspaceError as exc:
                _log.warning("predictions wait in memory: %s", exc)
                # A full disk does not empty itself by asking faster.
                with self._changed:
                    left = max(deadline - time.monotonic(), self._flush_s)
                    self._changed.wait_for(lambda: self._is_closed, timeout=left)


def _size(arrays: Feeds) -> int:
    size = 0
    for array in arrays.values():
        size += array.size * _TEXT_BYTES if array.dtype.kind == "O" else array.nbytes
    return size
