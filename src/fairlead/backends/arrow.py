"""Arrow columns to numpy arrays and back, with missing values kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.core.dataset import Array

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["array_from_arrow", "arrow_from_array", "leave_pandas_out"]


class _NoPandas:
    """Says that there is no pandas, whoever asks."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def leave_pandas_out() -> None:
    """Keep Arrow from importing pandas, which it does at its first array where there is one.

    It takes more memory than Arrow itself, and nothing here needs it. For processes of our own
    only: Arrow looks once, and afterwards it can make no data frames.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        import pyarrow as pa

        pa.array([], pa.int64())
    finally:
        sys.meta_path.remove(_NoPandas)


def array_from_arrow(column: pa.ChunkedArray | pa.Array) -> Array:
    """Convert one Arrow column.

    Returns:
        Numbers and booleans as they are, as float64 with NaN where values are missing; times as
        datetime64[us] in UTC; lists of one length as arrays of shape (n_rows, length, …);
        everything else as `object` with `str` and None.
    """
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return _convert(array, array.type)


def _convert(array: pa.Array, kind: pa.DataType) -> Array:
    import pyarrow as pa

    types = pa.types
    if types.is_null(kind):
        return np.full(len(array), np.nan)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return _numbers(array)
    if types.is_decimal(kind):
        return _numbers(array.cast(pa.float64()))
    if types.is_date(kind) or types.is_timestamp(kind):
        return _times(array, kind)
    if types.is_duration(kind):
        return _seconds(array)
    if types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _lists(array)
    return _text(array)


def _numbers(array: pa.Array) -> Array:
    import pyarrow as pa

    if array.null_count == 0:
        return np.array(array.to_numpy(zero_copy_only=False))
    return np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _times(array: pa.Array, kind: pa.DataType) -> Array:
    import pyarrow as pa

    # Casting drops the zone, not the instant: Arrow stores UTC.
    zone = getattr(kind, "tz", None)
    plain = array.cast(pa.timestamp("us", tz=zone), safe=False)
    return np.array(plain.to_numpy(zero_copy_only=False)).astype("datetime64[us]")


def _seconds(array: pa.Array) -> Array:
    import pyarrow as pa

    micros = array.cast(pa.duration("us"), safe=False).cast(pa.int64())
    return _numbers(micros).astype(np.float64) / 1e6


def _lists(array: pa.Array) -> Array:
    import pyarrow.compute as pc

    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    if array.null_count or len(array) == 0 or len(set(lengths.tolist())) != 1:
        return _text(array)
    inner = array_from_arrow(array.flatten())
    return inner.reshape(len(array), int(lengths[0]), *inner.shape[1:])


def _text(array: pa.Array) -> Array:
    found: Array = np.empty(len(array), dtype=object)
    found[:] = [None if value is None else _as_text(value) for value in array.to_pylist()]
    return found


def _as_text(value: Any) -> str:  # noqa: ANN401 (any Arrow value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def arrow_from_array(array: Array) -> pa.Array:
    """Convert one numpy column of shape (n_rows, …); None and NaT become nulls."""
    import pyarrow as pa

    if array.ndim > 1:
        size = int(array.shape[1])
        flat = arrow_from_array(array.reshape(-1, *array.shape[2:]))
        return pa.FixedSizeListArray.from_arrays(flat, size)
    if array.dtype.kind in "OU":
        values = [None if value is None else _plain(value) for value in array.tolist()]
        return pa.array(values if _is_uniform(values) else [_maybe_text(v) for v in values])
    return pa.array(np.ascontiguousarray(array))


def _plain(value: Any) -> Any:  # noqa: ANN401 (any cell)
    return value.item() if isinstance(value, np.generic) else value


def _maybe_text(value: Any) -> str | None:  # noqa: ANN401 (any cell)
    return None if value is None else str(value)


def _is_uniform(values: list[Any]) -> bool:
    return len({type(value) for value in values if value is not None}) <= 1
