"""What every request's tensors are checked against before they queue."""

from __future__ import annotations

import numpy as np

from fairlead.core.errors import SignatureError
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import Signature, conform

__all__ = ["Intake"]


class Intake:
    """Checks feeds against a signature; tensors that already fit cost next to nothing."""

    def __init__(self, signature: Signature, *, max_rows: int) -> None:
        """Prepare the checks.

        Args:
            signature: What the model takes.
            max_rows: Most rows of one request.
        """
        self._signature = signature
        self._max_rows = max_rows
        is_plain = all(
            spec.has_free_batch and -1 not in spec.shape[1:] for spec in signature.inputs
        )
        self._exact: list[tuple[str, np.dtype[np.generic], tuple[int, ...], int]] = [
            (spec.name, spec.numpy_dtype, spec.shape[1:], len(spec.shape))
            for spec in (signature.inputs if is_plain else ())
        ]

    def check(self, feeds: Feeds) -> tuple[dict[str, Array], int]:
        """Return the tensors as the model takes them, in its order, and the number of rows.

        Raises:
            SignatureError: A tensor is missing, unknown or does not fit, or there are no rows, or
                too many.
        """
        rows = self._rows_of_fitting(feeds)
        if rows > 0:
            ready = feeds if isinstance(feeds, dict) else dict(feeds)
        else:
            ready = conform(feeds, self._signature)
            rows = _count_rows(ready)
        if rows > self._max_rows:
            raise SignatureError(
                f"the request holds {rows} rows, and at most {self._max_rows} are served at once",
                hint="send several requests, or score a file with `fairlead serve batch`",
            )
        return ready, rows

    def _rows_of_fitting(self, feeds: Feeds) -> int:
        """Return the rows of tensors that fit exactly and come in order; else 0."""
        exact = self._exact
        if len(feeds) != len(exact):
            return 0
        if len(exact) == 1:
            name, dtype, tail, n_dims = exact[0]
            array = feeds.get(name)
            if array is None or array.dtype is not dtype or array.ndim != n_dims:
                return 0
            shape = array.shape
            return shape[0] if shape[1:] == tail else 0
        rows = 0
        for (name, dtype, tail, n_dims), (given, array) in zip(exact, feeds.items(), strict=True):
            shape = array.shape
            if given != name or len(shape) != n_dims or shape[1:] != tail or array.dtype != dtype:
                return 0
            if rows and shape[0] != rows:
                return 0
            rows = shape[0]
        return rows


def _count_rows(feeds: dict[str, Array]) -> int:
    first = next(iter(feeds.values()), None)
    rows = 1 if first is None or first.ndim == 0 else len(first)
    if rows == 0:
        raise SignatureError("the request holds no rows", hint="send at least one row")
    return rows
