"""The plain JSON endpoint for people: rows in, predictions out.

{"rows": [{"age": 41, "city": "Oslo"}]}
{"predictions": [{"prediction": "yes", "scores": {"no": 0.1, "yes": 0.9}}]}
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, SignatureError
from fairlead.core.ports import Feeds
from fairlead.core.signature import STRING, Signature
from fairlead.measure.profile import flatten_outputs

__all__ = ["feeds_from_rows", "predictions_from_outputs"]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?Z?")
_SHOWN = 12


def feeds_from_rows(rows: object, manifest: BundleManifest, signature: Signature) -> Feeds:
    """Turn rows into the inputs of a model.

    Args:
        rows: A list of objects (column → value), or of lists for a model with one input.
        manifest: Says which columns the model takes.
        signature: What the model takes.

    Returns:
        One array per input, first dimension the rows.

    Raises:
        DataError: A column is missing or unknown, or a value is of the wrong type.
    """
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"`rows` is {'empty' if rows == [] else repr(rows)[:40]}, expected a list of rows",
            hint='send {"rows": [{"column": value, …}]}',
        )
    if all(isinstance(row, dict) for row in rows):
        columns = _columns(rows, _expected(manifest, signature), manifest)
    elif all(isinstance(row, list) for row in rows) and len(signature.inputs) == 1:
        columns = {signature.inputs[0].name: _nested(rows, signature.inputs[0].name)}
    else:
        raise DataError(
            "`rows` mixes objects with other values",
            hint='send {"rows": [{"column": value, …}]}',
        )
    texts = {spec.name for spec in signature.inputs if spec.dtype == STRING}
    _check_types(columns, texts, is_all_text=bool(texts) and len(signature.inputs) == 1)
    try:
        data = Dataset(columns, source="the request")
        return bind(data, signature, feature_columns=_order(manifest, columns))
    except SignatureError:
        raise
    except (ValueError, TypeError) as exc:
        if isinstance(exc, DataError):
            raise
        raise DataError(
            f"the rows cannot be read: {exc}", hint="send one value of one type per column"
        ) from exc


def predictions_from_outputs(
    manifest: BundleManifest, outputs: dict[str, Array]
) -> list[dict[str, Any]]:
    """Turn outputs into one object per row: the prediction, and the score of each class."""
    columns = flatten_outputs(manifest, outputs)
    scores = {
        name.removeprefix("score[").removesuffix("]"): _plain(array)
        for name, array in columns.items()
        if name.startswith("score[")
    }
    others = {n: _plain(a) for n, a in columns.items() if not n.startswith("score[")}
    count = len(next(iter(columns.values()), ()))
    rows: list[dict[str, Any]] = []
    for row in range(count):
        document = {name: values[row] for name, values in others.items()}
        if scores:
            document["scores"] = {label: values[row] for label, values in scores.items()}
        rows.append(document)
    return rows


def _plain(array: Array) -> list[Any]:
    values: list[Any] = array.tolist()
    if array.dtype.kind != "f":
        return values
    return [value if math.isfinite(value) else None for value in values]


def _expected(manifest: BundleManifest, signature: Signature) -> tuple[str, ...]:
    if len(signature.inputs) == 1 and manifest.feature_columns:
        return tuple(manifest.feature_columns)
    return tuple(spec.name for spec in signature.inputs)


def _order(manifest: BundleManifest, columns: dict[str, Array]) -> tuple[str, ...]:
    return tuple(name for name in manifest.feature_columns if name in columns)


def _columns(
    rows: Sequence[dict[str, Any]], expected: tuple[str, ...], manifest: BundleManifest
) -> dict[str, Array]:
    known = set(expected)
    for number, row in enumerate(rows):
        missing = [name for name in expected if name not in row]
        unknown = [name for name in row if name not in known and name != manifest.label_column]
        if missing or unknown:
            what = f"lacks {_listed(missing)}" if missing else f"has unknown {_listed(unknown)}"
            raise DataError(
                f"row {number} {what}", hint=f"the columns of the model are {_listed(expected)}"
            )
    return {name: _array([row[name] for row in rows], name) for name in expected}


def _array(values: list[Any], name: str) -> Array:
    if any(isinstance(value, list) for value in values):
        return _nested(values, name)
    if any(isinstance(value, dict) for value in values):
        raise DataError(f"column `{name}` holds an object", hint="send numbers or text")
    if all(isinstance(value, (int, float)) for value in values):
        # Whole numbers beyond 64 bits become floats rather than an error.
        return np.array(values, None if all(_is_small(value) for value in values) else np.float64)
    array: NDArray[np.object_] = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _is_small(value: float) -> bool:
    return isinstance(value, float) or abs(value) < 2**63


def _nested(values: list[Any], name: str) -> Array:
    try:
        return np.array(values)
    except (ValueError, OverflowError) as exc:
        raise DataError(
            f"`{name}` has lists of different lengths", hint="send lists of one length"
        ) from exc


def _check_types(columns: dict[str, Array], texts: set[str], *, is_all_text: bool) -> None:
    """Refuse text where the model takes numbers; a date becomes its seconds, as in files."""
    for name, array in columns.items():
        if is_all_text or name in texts or array.dtype.kind not in "OU":
            continue
        flat = array.ravel()
        if all(value is None or _DATE.fullmatch(str(value)) for value in flat.tolist()):
            dates = [None if v is None else str(v).removesuffix("Z") for v in flat.tolist()]
            columns[name] = np.array(dates, "datetime64[us]").reshape(array.shape)
            continue
        wrong = next((value for value in flat.tolist() if isinstance(value, str)), None)
        if wrong is not None:
            raise DataError(
                f"column `{name}` holds the text {wrong[:40]!r}, but the model takes a number",
                hint="send the number without quotes",
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
