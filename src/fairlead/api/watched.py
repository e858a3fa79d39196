"""What is watched: the rows of a file, or the logged predictions of a service and its bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import BundleError, DataError, NotFoundError, UsageError
from fairlead.core.files import digest_file
from fairlead.core.prediction import PredictionBatch

__all__ = ["labelled_rows", "logged_window", "parse_since", "read_log", "require_rows"]

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DIGESTS = "fairlead/digests.json"
_FOLDERS = ("runs/*/*", "runs/*/*/*", "artifacts/*", "artifacts/*/*")


def parse_since(text: str | None, *, now: datetime | None = None) -> datetime | None:
    """Read how far back to look: `90s`, `15m`, `1h`, `7d`, `2w`, or a time in ISO 8601.

    Examples:
        >>> parse_since("2h", now=datetime(2026, 1, 31, 12, tzinfo=UTC)).isoformat()
        '2026-01-31T10:00:00+00:00'

    Raises:
        UsageError: It is neither.
    """
    if text is None:
        return None
    span = _SPAN.fullmatch(text.strip())
    if span is not None:
        length = timedelta(seconds=float(span[1]) * _SECONDS[span[2]])
        return (now or datetime.now(UTC)) - length
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"{text!r} is no length of time and no time",
            hint="give 90s, 15m, 1h, 7d, 2w or 2026-01-31T12:00",
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def labelled_rows(bundle: Bundle, data: str | Path, labels: str | None) -> Dataset:
    """Read rows; the column that the bundle knows as its label is taken as such when it is there.

    Raises:
        NotFoundError: There is no such file.
        DataError: The rows cannot be read, or lack the label column.
    """
    from fairlead.backends.datasets import load_dataset

    rows = load_dataset(data, labels=labels)
    known = bundle.manifest.label_column
    if labels is None and known is not None and known in rows.columns:
        return load_dataset(data, labels=known)
    return rows


def read_log(
    context: Context,
    service: str,
    *,
    since: str | None = None,
    version: str | None = None,
    limit: int | None = None,
) -> PredictionBatch:
    """Read the logged predictions of a service, the newest `limit` of them.

    Raises:
        NotFoundError: There are none.
        UsageError: `since` cannot be read, or the name cannot be that of a service.
    """
    from fairlead.backends.prediction_log import ParquetPredictionLog

    log = ParquetPredictionLog(context.workspace.predictions)
    batch = log.read(service, since=parse_since(since), version=version, limit=limit)
    if batch is None:
        window = "" if since is None else f" since {since}"
        of = "" if version is None else f" of version {version}"
        raise NotFoundError(
            f"no prediction of `{service}`{of} was logged{window} in {context.workspace.root}",
            hint="send it requests, look further back with --since, or set FAIRLEAD_HOME",
        )
    return batch


def logged_window(
    context: Context,
    service: str,
    *,
    bundle: str | Path | None,
    since: str | None,
    version: str | None,
    limit: int,
) -> tuple[Bundle, PredictionBatch]:
    """Read the newest predictions of a service and find the bundle that made the last of them.

    Args:
        context: Where the log is.
        service: Name of the service.
        bundle: Folder of the bundle; looked for in the workspace when None.
        since: How far to look back; None reads everything.
        version: Only predictions of this version.
        limit: Most predictions.

    Raises:
        NotFoundError: There are no predictions, or the bundle is not found.
    """
    batch = read_log(context, service, since=since, version=version, limit=limit)
    digests = batch.fields["bundle_digest"].astype(str)
    chosen = _open(context, service, str(digests[-1])) if bundle is None else Bundle.open(bundle)
    is_own = digests == (chosen.digest if chosen.digest in digests else digests[-1])
    return chosen, _taken(batch, is_own, service)


def _taken(
    batch: PredictionBatch, rows: np.ndarray[tuple[int], np.dtype[np.bool_]], service: str
) -> PredictionBatch:
    inputs = batch.inputs.take(rows)
    named = Dataset(inputs.columns, inputs.labels, inputs.label_name, f"the log of `{service}`")
    return PredictionBatch(
        ids=batch.ids[rows],
        at=batch.at[rows],
        inputs=named,
        outputs={name: array[rows] for name, array in batch.outputs.items()},
        fields={name: array[rows] for name, array in batch.fields.items()},
    )


def _open(context: Context, service: str, digest: str) -> Bundle:
    for folder in _candidates(context, digest):
        try:
            if digest_file(folder / _DIGESTS) == digest:
                return Bundle.open(folder)
        except (OSError, BundleError):
            continue
    raise NotFoundError(
        f"the bundle {digest[:19]}… that made the predictions of `{service}` is not in "
        f"{context.workspace.root}",
        hint="give its folder with --bundle",
    )


def _candidates(context: Context, digest: str) -> Iterator[Path]:
    """Yield folders that may hold a bundle: the registry's, the workspace's, the ones at hand."""
    from fairlead.backends.sql_registry import SqlRegistry

    registered = SqlRegistry(context.workspace.database_url).find_bundle(digest)
    if registered is not None:
        yield Path(registered.path)
        yield Path(registered.source)
    for pattern in _FOLDERS:
        for path in context.workspace.root.glob(f"{pattern}/{_DIGESTS}"):
            yield path.parents[1]
    for path in Path.cwd().glob(f"*/{_DIGESTS}"):
        yield path.parents[1]


def require_rows(data: str | Path | None) -> str | Path:
    """Return the rows that were given.

    Raises:
        DataError: None were.
    """
    if data is None:
        raise DataError("no rows were given", hint="name them with --data, or name a --service")
    return data
