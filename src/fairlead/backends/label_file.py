"""True labels of requests, in a file that grows while they become known."""

from __future__ import annotations

from typing import Any

from fairlead.backends.datasets import load_dataset
from fairlead.core.errors import DataError, NotFoundError
from fairlead.core.files import user_path

__all__ = ["LabelFile"]


class LabelFile:
    """Reads request id → label from the columns `id` and `label`, again after each change."""

    def __init__(self, reference: str) -> None:
        """Read the file for the first time.

        Args:
            reference: A Parquet, CSV or JSON-lines file.

        Raises:
            NotFoundError: There is no such file.
            DataError: It cannot be read, or lacks a column.
        """
        self._reference = reference
        self._path = user_path(reference)
        if not self._path.is_file():
            raise NotFoundError(
                f"there are no labels at {reference}",
                hint="give a file with the columns `id` (of the request) and `label`",
            )
        self._stamp = (0, 0)
        self._labels: dict[str, Any] = {}
        self()

    def __call__(self) -> dict[str, Any]:
        """Return every label that is known by now.

        Raises:
            DataError: The file cannot be read, or lacks a column.
        """
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._labels = self._read()
            self._stamp = stamp
        return self._labels

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers rather than classes."""
        values = [value for value in self._labels.values() if isinstance(value, float)]
        return any(value != int(value) for value in values)

    def _read(self) -> dict[str, Any]:
        columns = load_dataset(self._reference).columns
        if not {"id", "label"} <= set(columns):
            raise DataError(
                f"{self._reference} has the columns {', '.join(columns)}",
                hint="name the columns `id` (of the request) and `label`",
            )
        pairs = zip(columns["id"].tolist(), columns["label"].tolist(), strict=True)
        return {str(key): value for key, value in pairs if value is not None}
