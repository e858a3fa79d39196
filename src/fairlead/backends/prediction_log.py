"""The prediction log: a bounded buffer, a spool that survives a killed process, and Parquet.

    predictions/<service>/20260131T120000123456-4711-1.spool
    predictions/<service>/20260131T120100000000-20260131T120000123456-4711-1.parquet

Callers only put references into the buffer. A thread of its own writes them to the spool, several
times a second, and a process of its own turns spools into Parquet segments; the library that
knows Parquet weighs more than a small model, so it is never loaded for this. Readers see both as
one. What does not fit into the buffer is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.backends.logged_request import LoggedRequest, Render, RequestColumns, render_requests
from fairlead.backends.prediction_retention import FOREVER, Retention
from fairlead.backends.prediction_rules import LogRules
from fairlead.backends.prediction_spool import SpoolWriter
from fairlead.backends.segment_process import SegmentProcess, prepare_folder
from fairlead.core.errors import FairleadError, WorkspaceError
from fairlead.core.ports import Feeds
from fairlead.core.prediction import Prediction, PredictionBatch

__all__ = ["LogCounts", "LoggedRequest", "ParquetPredictionLog"]

_log = logging.getLogger(__name__)
_TEXT_BYTES = 64
_REQUEST_BYTES = 512
"""What a buffered request weighs beside its arrays."""
_PREDICTION_BYTES = 2048
_RETRY_S = 1.0
_SPOOLS_AT_ONCE = 16
"""Full spools that are worth starting a process for; each is then turned on its own."""

Done = Callable[[FairleadError | None], None]


class LogCounts(NamedTuple):
    """What became of the rows that the log was shown.

    Attributes:
        n_written: Rows that the spool holds, or held.
        n_dropped: Rows that were lost: the buffer or the disk was full.
        n_left_out: Rows that the rules did not want.
    """

    n_written: int
    n_dropped: int
    n_left_out: int


class ParquetPredictionLog:
    """Predictions in a folder; implements the port `PredictionLog`, safe for several threads.

    Several processes may write to one folder, each to its own files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        flush_s: float = 0.2,
        flush_rows: int = 2_000,
        buffer_bytes: int = 16 << 20,
        segment_s: float = 300.0,
        segment_bytes: int = 16 << 20,
        spool_bytes: int = 4 << 30,
        keep: Retention = FOREVER,
        is_durable: bool = False,
        rules: LogRules | None = None,
    ) -> None:
        """Prepare the log; nothing is written or started before the first prediction.

        Args:
            folder: The folder of all services, `Workspace.predictions`.
            flush_s: Longest time a prediction waits in the buffer, in seconds.
            flush_rows: Rows in the buffer that are written without waiting.
            buffer_bytes: Memory of the buffer; further predictions are dropped and counted.
            segment_s: Longest time until a spool becomes a Parquet segment, in seconds.
            segment_bytes: Size of a spool at which the next one is begun; many of them are
                turned into segments together, without waiting for the time.
            spool_bytes: Disk for the spools of a service; further predictions are dropped.
            keep: How long segments are kept.
            is_durable: Whether `commit` waits for the disk and not only for the file system.
            rules: What is kept and hidden; None keeps everything.
        """
        self._folder = Path(folder)
        self._flush_s = flush_s
        self._flush_rows = flush_rows
        self._buffer_bytes = buffer_bytes
        self._segment_s = segment_s
        self._segment_bytes = segment_bytes
        self.is_durable = is_durable
        self._rules = rules or LogRules()
        self._spools = SpoolWriter(self._folder, self._rules)
        self._segments = SegmentProcess(self._folder, spool_bytes, keep)
        self._buffer: list[tuple[Render | None, Sequence[Any]]] = []
        self._rows = 0
        self._bytes = 0
        self._waiters: list[Done] = []
        self._sealed: list[str] = []
        self._sealed_at = 0.0
        self._backlog: list[RequestColumns | Prediction] = []
        self._backlog_bytes = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._is_closed = False
        self._has_lost = False
        self._thread: threading.Thread | None = None
        self._n_written = 0
        self._n_dropped = 0
        self._n_left_out = 0

    @property
    def n_written(self) -> int:
        """Rows that were written so far."""
        return self._n_written

    @property
    def n_dropped(self) -> int:
        """Rows that were lost so far: buffer or disk were full, or writing failed to the end."""
        return self._n_dropped

    @property
    def counts(self) -> LogCounts:
        """What became of the rows so far."""
        return LogCounts(self._n_written, self._n_dropped, self._n_left_out)

    @property
    def takes_joined(self) -> bool:
        """Whether tensors of several requests may come as one; not where single ones are chosen."""
        return not self._rules.sample

    def prepare(self, service: str) -> None:
        """Find out early when the folder cannot be written, and take care of earlier spools.

        Raises:
            WorkspaceError: It cannot.
        """
        prepare_folder(self._folder, service)
        if self._segments.is_due(service):
            self._segments.make((service,))

    def append_request(self, request: LoggedRequest) -> None:
        """Buffer the rows of one request; never blocks on disk."""
        size = _size(request.feeds) + _size(request.outputs or {})
        self.append_rendered((request,), render_requests, n_rows=request.n_rows, n_bytes=size)

    def append_rendered(
        self, requests: Sequence[Any], render: Render, *, n_rows: int, n_bytes: int
    ) -> None:
        """Buffer requests of whatever kind; takes a microsecond however many there are.

        Args:
            requests: The requests; they must not change any more.
            render: Turns requests of this kind into columns, later and in another thread.
            n_rows: Their rows.
            n_bytes: The bytes of their arrays.
        """
        self._put(render, requests, n_rows, n_bytes + _REQUEST_BYTES * len(requests))

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Buffer predictions; `flush` makes them durable."""
        for prediction in predictions:
            self._put(None, (prediction,), 1, _PREDICTION_BYTES)

    def commit(self, done: Done) -> None:
        """Have everything that was buffered so far written, together with what others wait for.

        Args:
            done: Called in the log's thread, with None once the predictions survive the end of
                this process (and of the machine, when the log is durable), else with the reason;
                predictions that could not be written are then dropped and counted.
        """
        with self._changed:
            is_closed = self._is_closed
            if not is_closed:
                self._waiters.append(done)
                self._start()
                self._changed.notify_all()
        if is_closed:
            done(WorkspaceError("the prediction log is closed", hint="start the server again"))

    def flush(self) -> None:
        """Write what is buffered and wait for the disk; what fails stays in the buffer.

        Raises:
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        self._write(must_sync=True)

    def close(self) -> None:
        """Write what is buffered, make segments of it and stop; what cannot be written is lost."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except WorkspaceError as exc:
            with self._writing:
                lost = self._drop_backlog()
            _log.warning("%d predictions are lost: %s", lost, exc)
        self._segments.make(
            tuple(dict.fromkeys((*self._sealed, *self._spools.seal()))), is_last=True
        )

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
        from fairlead.backends.prediction_segments import Window, read_segments

        window = Window(since=since, until=until, version=version, limit=limit)
        return read_segments(self._folder, service, window)

    def _put(self, render: Render | None, items: Sequence[Any], rows: int, size: int) -> None:
        with self._changed:
            held = self._bytes + self._backlog_bytes
            if self._is_closed or held + size > self._buffer_bytes or self._segments.is_full:
                self._n_dropped += rows
                self._has_lost = True
                return
            was_empty = not self._rows
            self._buffer.append((render, items))
            self._rows += rows
            self._bytes += size
            if self._thread is None:
                self._start()
            if was_empty or self._rows >= self._flush_rows:
                self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write_on, name="fairlead-prediction-log", daemon=True
            )
            self._thread.start()

    def _take(self) -> list[tuple[Render | None, Sequence[Any]]]:
        with self._changed:
            taken, self._buffer = self._buffer, []
            self._backlog_bytes += self._bytes
            self._rows = self._bytes = 0
        return taken

    def _write(self, *, must_sync: bool) -> None:
        with self._writing:
            self._backlog += _rendered(self._take())
            while self._backlog:
                entry = self._backlog[0]
                if isinstance(entry, Prediction):
                    written = self._spools.write_prediction(entry)
                else:
                    written = self._spools.write_requests(entry)
                # Only what was not written yet is tried again.
                self._backlog.pop(0)
                self._n_written += written.n_rows
                self._n_left_out += written.n_left_out
            self._backlog_bytes = 0
            if must_sync:
                self._spools.sync()

    def _drop_backlog(self) -> int:
        lost = sum(1 if isinstance(e, Prediction) else sum(e.n_rows) for e in self._backlog)
        self._backlog, self._backlog_bytes = [], 0
        self._n_dropped += lost
        return lost

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=self._idle_s())
                self._changed.wait_for(self._is_urgent, timeout=self._flush_s)
                waiters, self._waiters = self._waiters, []
                is_closed, has_lost, self._has_lost = self._is_closed, self._has_lost, False
            is_well = self._write_for(waiters, has_lost=has_lost)
            if is_closed:
                return
            self._seal_what_is_due()
            if not is_well:
                # A full disk does not empty itself by asking faster.
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._is_closed or bool(self._waiters), timeout=_RETRY_S
                    )

    def _seal_what_is_due(self) -> None:
        is_old = self._waiting_s() >= self._segment_s
        if not is_old and self._spools.size < self._segment_bytes:
            return
        with self._writing:
            self._sealed_at = self._sealed_at or time.monotonic()
            self._sealed += self._spools.seal()
            if is_old or len(self._sealed) >= _SPOOLS_AT_ONCE:
                self._segments.make(tuple(dict.fromkeys(self._sealed)))
                self._sealed.clear()
                self._sealed_at = 0.0

    def _waiting_s(self) -> float:
        """Return how long the oldest spool has waited to become a segment, in seconds."""
        sealed = time.monotonic() - self._sealed_at if self._sealed_at else 0.0
        return max(sealed, self._spools.age_s)

    def _is_urgent(self) -> bool:
        return self._is_closed or self._rows >= self._flush_rows or bool(self._waiters)

    def _has_work(self) -> bool:
        return bool(self._rows or self._backlog) or self._is_urgent()

    def _idle_s(self) -> float | None:
        """Seconds until spools must become segments; None when there are none."""
        is_anything = self._spools.size or self._sealed
        return max(0.01, self._segment_s - self._waiting_s()) if is_anything else None

    def _write_for(self, waiters: Sequence[Done], *, has_lost: bool) -> bool:
        problem: FairleadError | None = None
        if has_lost and waiters:
            problem = WorkspaceError(
                "the prediction log had no room, so not every prediction is remembered",
                hint="give it a faster disk or a larger `log_buffer_bytes`",
            )
        try:
            self._write(must_sync=self.is_durable)
        except FairleadError as exc:
            problem = exc
            _log.warning("predictions wait in memory: %s", exc)
            if waiters:
                with self._writing:
                    self._drop_backlog()
        for done in waiters:
            done(problem)
        return problem is None


def _rendered(
    taken: Sequence[tuple[Render | None, Sequence[Any]]],
) -> list[RequestColumns | Prediction]:
    """Turn what was buffered into columns, all requests of one kind together."""
    found: list[RequestColumns | Prediction] = []
    kinds: dict[Render, list[Any]] = {}
    for render, items in taken:
        if render is None:
            found += items
        else:
            kinds.setdefault(render, []).extend(items)
    for render, items in kinds.items():
        found += render(items)
    return found


def _size(arrays: Feeds) -> int:
    size = 0
    for array in arrays.values():
        size += array.size * _TEXT_BYTES if array.dtype.kind == "O" else array.nbytes
    return size
