"""How served requests become entries of the prediction log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fairlead.backends.logged_request import RequestColumns, render_joined
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.backends.prediction_retention import Retention
from fairlead.backends.prediction_rules import LogRules
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import STRING
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.served import Observer, ServedRequest, ServedTogether

__all__ = ["log_observer", "open_log"]

_TEXT_BYTES = 64
_WORTH_JOINING = 8
_REQUEST_BYTES = 512
"""What a request in the buffer weighs beside its arrays."""
_ARM = attrgetter("arm")


def open_log(folder: Path, config: ServingConfig) -> ParquetPredictionLog:
    """Return the log that the settings ask for; whoever opens it closes it.

    Raises:
        ConfigError: The file with its rules cannot be read, or has a wrong key or value.
    """
    rules = config.log_rules
    return ParquetPredictionLog(
        folder,
        flush_s=config.log_flush_s,
        flush_rows=config.log_flush_rows,
        buffer_bytes=config.log_buffer_bytes,
        segment_s=config.log_segment_s,
        segment_bytes=config.log_segment_bytes,
        spool_bytes=config.log_spool_bytes,
        keep=Retention(config.log_keep_days, config.log_keep_bytes),
        is_durable=config.log_mode == "durable",
        rules=LogRules.load(rules) if isinstance(rules, Path) else rules,
    )


def log_observer(log: ParquetPredictionLog, service: str) -> Observer:
    """Return the observer that hands requests with valid inputs to the log.

    What it costs per request is a comparison and an addition; columns are made of many requests
    at once, in the log's own thread. Where the log is durable, so is the observer.
    """
    return _DurableRecorder(log, service) if log.is_durable else _Recorder(log, service)


class _Recorder:
    """Hands the requests of one service to the log."""

    def __init__(self, log: ParquetPredictionLog, service: str) -> None:
        self._log = log
        self._service = service
        self._weights = _Weights()

    def __call__(self, requests: Sequence[ServedRequest], /) -> None:
        """Buffer what is worth remembering."""
        if isinstance(requests, ServedTogether) and self._log.takes_joined:
            row_bytes = self._weights.of_row(requests.arm)
            if row_bytes is not None:
                n_rows = requests.batch_rows
                self._log.append_rendered(
                    (requests,),
                    self._render_together,
                    n_rows=n_rows,
                    n_bytes=n_rows * row_bytes + _REQUEST_BYTES * (len(requests.ids) - 1),
                )
                return
        kept = [item for item in requests if item.feeds is not None and not item.is_probe]
        if not kept:
            return
        n_rows, n_bytes = self._weights.of(kept)
        if len(kept) >= _WORTH_JOINING and self._log.takes_joined and self._weights.are_alike(kept):
            # Joined while they are in the cache, they need not be kept alive one by one.
            joined = (_joined(_columns(self._service, kept[0].arm, kept)),)
            self._log.append_rendered(joined, render_joined, n_rows=n_rows, n_bytes=n_bytes)
        else:
            self._log.append_rendered(kept, self._render, n_rows=n_rows, n_bytes=n_bytes)

    def _render_together(self, batches: Sequence[ServedTogether]) -> list[RequestColumns]:
        arms = dict.fromkeys([item.arm for item in batches])
        return [
            _columns_together(self._service, arm, [item for item in batches if item.arm is arm])
            for arm in arms
        ]

    def _render(self, requests: Sequence[ServedRequest]) -> list[RequestColumns]:
        service = self._service
        arms = set(map(_ARM, requests))
        if len(arms) == 1:
            return [_columns(service, arms.pop(), requests)]
        return [_columns(service, arm, [r for r in requests if r.arm is arm]) for arm in arms]


class _DurableRecorder(_Recorder):
    """The same, and answers wait for the disk."""

    def commit(self, done: Callable[[Exception | None], None], /) -> None:
        """Call back once the disk holds what was buffered."""
        self._log.commit(done)


class _Weights:
    """Knows how many bytes a row has where all rows of an arm have the same."""

    def __init__(self) -> None:
        self._row_bytes: WeakKeyDictionary[Arm, int | None] = WeakKeyDictionary()

    def of(self, requests: Sequence[ServedRequest]) -> tuple[int, int]:
        """Return the rows and the bytes of some requests."""
        n_rows = n_bytes = 0
        arm, row_bytes = None, None
        for served in requests:
            if served.arm is not arm:
                arm = served.arm
                row_bytes = self.of_row(arm)
            n_rows += served.n_rows
            if row_bytes is not None:
                n_bytes += row_bytes * served.n_rows
            else:
                n_bytes += _size(served.feeds or {}) + _size(served.outputs or {})
        return n_rows, n_bytes

    def are_alike(self, requests: Sequence[ServedRequest]) -> bool:
        """Say whether requests are of one arm, succeeded, and have rows of one size."""
        arm = requests[0].arm
        return self.of_row(arm) is not None and all(
            item.arm is arm and item.status == 200 for item in requests
        )

    def of_row(self, arm: Arm) -> int | None:
        """Return the bytes of a row of all tensors of an arm, or None when rows differ."""
        try:
            return self._row_bytes[arm]
        except KeyError:
            found = self._row_bytes[arm] = _row_bytes(arm)
            return found


def _columns(service: str, arm: Arm, group: Sequence[ServedRequest]) -> RequestColumns:
    columns = dict(zip(ServedRequest._fields, zip(*group, strict=True), strict=True))
    bundle = arm.bundle
    return RequestColumns(
        service=service,
        manifest=bundle.manifest,
        version=bundle.version,
        bundle_digest=bundle.digest,
        arm=(arm.name,) * len(group),
        **{name: columns[name] for name in RequestColumns._fields if name in _SAME},
    )


def _columns_together(service: str, arm: Arm, batches: Sequence[ServedTogether]) -> RequestColumns:
    bundle = arm.bundle
    sizes = [len(item.ids) for item in batches]
    count = sum(sizes)

    def one_each(values: Sequence[float]) -> Any:  # noqa: ANN401 (an array is a sequence here)
        return np.repeat(values, sizes)

    return RequestColumns(
        service=service,
        manifest=bundle.manifest,
        version=bundle.version,
        bundle_digest=bundle.digest,
        id=list(chain.from_iterable([item.ids for item in batches])),
        arm=(arm.name,) * count,
        status=one_each([200] * len(batches)),
        feeds=[item.feeds for item in batches],
        outputs=[item.outputs for item in batches],
        n_rows=list(chain.from_iterable([item.n_rows for item in batches])),
        queue_ms=list(chain.from_iterable([item.queue_ms for item in batches])),
        run_ms=one_each([item.run_ms for item in batches]),
        total_ms=list(chain.from_iterable([item.total_ms for item in batches])),
        batch_rows=one_each([item.batch_rows for item in batches]),
        at=one_each([item.at for item in batches]),
        trace_id=list(chain.from_iterable([item.trace_ids for item in batches])),
        error=("",) * count,
    )


def _joined(columns: RequestColumns) -> RequestColumns:
    """Put the tensors of all requests below one another."""
    answers = [outputs for outputs in columns.outputs if outputs is not None]
    return columns._replace(feeds=(_below(columns.feeds),), outputs=(_below(answers),))


def _below(parts: Sequence[Feeds]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_SAME = frozenset(ServedRequest._fields) & frozenset(RequestColumns._fields) - {"arm"}
"""Fields that a served request and a row of the log have in common."""


def _row_bytes(arm: Arm) -> int | None:
    """Return the bytes of one row of all tensors, or None when rows differ."""
    size = 0
    for spec in (*arm.signature.inputs, *arm.signature.outputs):
        if spec.dtype == STRING or not spec.has_free_batch or -1 in spec.shape[1:]:
            return None
        size += int(np.prod(spec.shape[1:])) * spec.numpy_dtype.itemsize
    return size


def _size(arrays: Feeds | dict[str, Array]) -> int:
    size = 0
    for array in arrays.values():
        size += array.size * _TEXT_BYTES if array.dtype.kind == "O" else array.nbytes
    return size
