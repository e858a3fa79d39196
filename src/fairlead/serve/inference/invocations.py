r"""The bodies of MLflow's scoring server: `/invocations`, in JSON or CSV.

{"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}
{"dataframe_records": [{"a": 1, "b": 2}]}
{"instances": [[1, 2]]}        one row after the other, as TensorFlow Serving takes them
{"inputs": {"a": [1], "b": [2]}}   one tensor or column per name, or the only tensor
a,b\n1,2                        text/csv with a line of names
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from fairlead.core.bundle import BundleManifest
from fairlead.core.errors import DataError, FairleadError, SignatureError
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import STRING, Signature, TensorSpec
from fairlead.measure.quality import predicted
from fairlead.serve.inference.json_tensors import tensor_from_json
from fairlead.serve.inference.openinference import parse_json
from fairlead.serve.inference.plain import feeds_from_rows

__all__ = ["feeds_from_invocation", "invocation_answer"]

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_HINT = f"send one of {', '.join(_FORMS)}, or text/csv"


def feeds_from_invocation(
    body: bytes, content_type: str, manifest: BundleManifest, signature: Signature
) -> tuple[Feeds, dict[str, Any]]:
    """Read a body into the inputs of a model.

    Args:
        body: The body, decompressed.
        content_type: Its media type; CSV is read as such, everything else as JSON.
        manifest: Says which columns the model takes.
        signature: What the model takes.

    Returns:
        One array per input, and the JSON document (empty for CSV).

    Raises:
        DataError: It has none of the forms, or its rows do not fit.
    """
    if content_type.partition(";")[0].strip().lower() == "text/csv":
        return feeds_from_rows(_csv_rows(body, signature), manifest, signature), {}
    document = parse_json(body)
    forms = [name for name in _FORMS if name in document]
    if len(forms) != 1:
        raise DataError(
            f"the body has {', '.join(forms) if forms else 'none of the forms'}", hint=_HINT
        )
    content = document[forms[0]]
    if forms[0] == "dataframe_split":
        content = _split_rows(content)
    elif forms[0] == "inputs":
        return _columns(content, manifest, signature), document
    elif forms[0] == "instances":
        content = _instance_rows(content, signature)
    return feeds_from_rows(content, manifest, signature), document


def invocation_answer(manifest: BundleManifest, outputs: dict[str, Array]) -> dict[str, Any]:
    """Return the answer: the predicted labels or values, or all outputs of other models."""
    try:
        if manifest.task != "other":
            return {"predictions": _plain(predicted(manifest, outputs))}
    except (FairleadError, ValueError, TypeError, IndexError):
        pass  # a model of another kind has no single prediction per row
    return {"predictions": {name: _plain(array) for name, array in outputs.items()}}


def _plain(array: Array) -> Any:  # noqa: ANN401 (JSON leaves here)
    if array.dtype.kind not in "OUS":
        return np.ascontiguousarray(array)
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape).tolist()


def _split_rows(content: object) -> list[dict[str, Any]]:
    columns = content.get("columns") if isinstance(content, dict) else None
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(columns, list) or not isinstance(data, list):
        raise DataError(
            "`dataframe_split` lacks columns or data",
            hint='send {"columns": ["a", "b"], "data": [[1, 2]]}',
        )
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            raise DataError(
                f"row {number} of `dataframe_split` does not have {len(columns)} values",
                hint="give one value per column",
            )
    return [dict(zip(map(str, columns), row, strict=True)) for row in data]


def _instance_rows(content: object, signature: Signature) -> object:
    if not isinstance(content, list):
        raise DataError("`instances` is no list", hint="send one item per row")
    is_scalar = len(signature.inputs) == 1 and len(signature.inputs[0].shape) <= 2
    if is_scalar and content and not any(isinstance(item, dict | list) for item in content):
        return [[item] for item in content]
    return content


def _columns(content: object, manifest: BundleManifest, signature: Signature) -> Feeds:
    names = {spec.name for spec in signature.inputs}
    if isinstance(content, dict) and set(content) != names:
        lengths = {len(v) if isinstance(v, list) else -1 for v in content.values()}
        if len(lengths) != 1 or -1 in lengths:
            raise DataError(
                "the columns of `inputs` have different lengths", hint="give one value per row"
            )
        rows = [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
        return feeds_from_rows(rows, manifest, signature)
    if not isinstance(content, dict):
        if len(signature.inputs) != 1:
            raise DataError(
                "`inputs` is one tensor, but the model takes several",
                hint=f"name them: {', '.join(sorted(names))}",
            )
        content = {signature.inputs[0].name: content}
    return {spec.name: _tensor(content[spec.name], spec) for spec in signature.inputs}


def _tensor(data: object, spec: TensorSpec) -> Array:
    from fairlead.backends.openinference import datatype_of

    shape: list[int] = []
    part = data
    while isinstance(part, list):
        shape.append(len(part))
        part = part[0] if part else None
    if not shape:
        raise SignatureError(f"input `{spec.name}` is no list", hint=f"send {spec}")
    if len(shape) == 1 and len(spec.shape) == 2 and spec.shape[1] in (1, -1):
        shape.append(1)
    datatype = datatype_of(spec.dtype)
    return tensor_from_json(data, name=spec.name, datatype=datatype, shape=tuple(shape))


def _csv_rows(body: bytes, signature: Signature) -> list[dict[str, Any]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(f"the CSV is not UTF-8: {exc.reason}", hint="send UTF-8") from exc
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as exc:
        raise DataError(f"the body is no CSV: {exc}", hint="quote fields with commas") from exc
    names, *rows = [line for line in lines if line] or [[]]
    texts = {spec.name for spec in signature.inputs if spec.dtype == STRING}
    is_all_text = bool(texts) and len(signature.inputs) == 1
    found = []
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise DataError(
                f"row {number} of the CSV has {len(row)} fields, but there are {len(names)} names",
                hint="begin with a line of names, and give one field per name",
            )
        pairs = zip(names, row, strict=True)
        found.append({n: v if is_all_text or n in texts else _number(v) for n, v in pairs})
    return found


def _number(text: str) -> float | int | str | None:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
