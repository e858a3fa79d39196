"""Runs the ONNX model of a Fairlead bundle for MLflow.

A copy of this file lies in every bundle, so that `mlflow.pyfunc.load_model` needs nothing but
MLflow and ONNX Runtime. MLflow's own loader for ONNX fails on a DataFrame when a model gives more
than one value per row in one output, as every classifier with scores does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "string": "object"}


def _load_pyfunc(path: str) -> _Model:
    """Load the model; MLflow calls this by name with the path of the ONNX file."""
    return _Model(Path(path))


class _Model:
    """An ONNX model that takes a DataFrame, a dictionary of arrays, or one array."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        about = path.parent / "fairlead" / "bundle.json"
        manifest = json.loads(about.read_text()) if about.is_file() else {}
        self._features: list[str] = list(manifest.get("feature_columns", []))
        self._classes: list[Any] = list(manifest.get("classes", []))
        self._scores: str | None = manifest.get("score_output")
        self._inputs = self._session.get_inputs()
        self._outputs = [output.name for output in self._session.get_outputs()]

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401, ARG002
        """Return a DataFrame for a DataFrame, one column per number; else arrays by name."""
        is_frame = hasattr(data, "columns")
        feeds = self._feeds(data, is_frame=is_frame)
        values = self._session.run(self._outputs, feeds)
        outputs = {name: np.asarray(v) for name, v in zip(self._outputs, values, strict=True)}
        if not is_frame:
            return outputs
        import pandas as pd

        columns: dict[str, Any] = {}
        for name, array in outputs.items():
            columns.update(self._spread(name, array))
        return pd.DataFrame(columns, index=data.index)

    def _feeds(self, data: Any, *, is_frame: bool) -> dict[str, Any]:  # noqa: ANN401
        if not is_frame and not isinstance(data, dict):
            return {self._inputs[0].name: self._tensor([np.asarray(data)], self._inputs[0])}
        names = list(data.columns) if is_frame else list(data)
        columns = {name: np.asarray(data[name]) for name in names}
        if all(item.name in columns for item in self._inputs):
            return {item.name: self._tensor([columns[item.name]], item) for item in self._inputs}
        chosen = self._features or names
        missing = [name for name in chosen if name not in columns]
        if missing or len(self._inputs) != 1:
            wanted = missing or [item.name for item in self._inputs if item.name not in columns]
            raise ValueError(f"the data lacks the columns {wanted}; it has {names}")
        return {self._inputs[0].name: self._tensor([columns[n] for n in chosen], self._inputs[0])}

    def _tensor(self, parts: list[Any], item: Any) -> Any:  # noqa: ANN401
        kind = item.type.removeprefix("tensor(").removesuffix(")")
        dtype = np.dtype(_DTYPES.get(kind, kind))
        ready = [self._cast(part, dtype) for part in parts]
        rows = len(ready[0])
        table = ready[0] if len(ready) == 1 else np.stack([p.reshape(rows) for p in ready], axis=1)
        sizes = [size if isinstance(size, int) and size > 0 else -1 for size in item.shape[1:]]
        if sizes.count(-1) > 1:
            return table
        return table.reshape(rows, *sizes)

    @staticmethod
    def _cast(array: Any, dtype: Any) -> Any:  # noqa: ANN401
        if array.dtype.kind == "O" and len(array) and isinstance(array[0], list | np.ndarray):
            array = np.stack([np.asarray(row) for row in array])
        if dtype.kind == "O":
            flat = ["" if v is None or v != v else str(v) for v in array.ravel().tolist()]
            return np.array(flat, dtype=object).reshape(array.shape)
        if array.dtype.kind == "M":
            seconds = array.astype("datetime64[us]").astype(np.float64) / 1e6
            array = np.where(np.isnat(array), np.nan, seconds)
        return array.astype(dtype)

    def _spread(self, name: str, array: Any) -> dict[str, Any]:  # noqa: ANN401
        table = array.reshape(len(array), -1)
        if table.shape[1] == 1:
            return {name: table[:, 0]}
        is_scores = name == self._scores and len(self._classes) == table.shape[1]
        labels = self._classes if is_scores else range(table.shape[1])
        return {f"{name}[{label}]": table[:, index] for index, label in enumerate(labels)}
