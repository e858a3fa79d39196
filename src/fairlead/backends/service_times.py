"""Measured service times from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.datasets import load_dataset
from fairlead.core.errors import DataError, NotFoundError
from fairlead.core.files import user_path

__all__ = ["COLUMN", "load_service_times"]

COLUMN = "service_ms"
_HINT = f"give a JSON list of milliseconds, or a table with the column `{COLUMN}`"


def load_service_times(reference: str) -> NDArray[np.float64]:
    """Read service times in milliseconds.

    Args:
        reference: A JSON list of numbers, a JSON object with `service_ms`, or a CSV, Parquet or
            JSON-lines table with the column `service_ms` (or with one column only).

    Returns:
        Shape (n,), n ≥ 1.

    Raises:
        NotFoundError: There is no such file.
        DataError: It holds no numbers.
    """
    path = user_path(reference)
    if not path.is_file():
        raise NotFoundError(f"there are no service times at {reference}", hint=_HINT)
    found = _from_json(path) if path.suffix.lower() == ".json" else _from_table(reference)
    try:
        times = np.asarray(found, np.float64)
    except (TypeError, ValueError) as exc:
        raise DataError(f"{reference} holds something else than numbers", hint=_HINT) from exc
    if times.ndim != 1 or len(times) == 0:
        raise DataError(f"{reference} holds no list of numbers", hint=_HINT)
    return times


def _from_json(path: Path) -> Any:  # noqa: ANN401 (JSON enters here)
    try:
        document = json.loads(path.read_text())
    except (ValueError, OSError) as exc:
        raise DataError(f"{path} is not JSON: {exc}", hint=_HINT) from exc
    if isinstance(document, dict):
        return document.get(COLUMN, [])
    return document


def _from_table(reference: str) -> NDArray[Any]:
    columns = load_dataset(reference).columns
    if COLUMN in columns:
        return columns[COLUMN]
    if len(columns) == 1:
        return next(iter(columns.values()))
    raise DataError(f"{reference} has the columns {', '.join(columns)}", hint=_HINT)
