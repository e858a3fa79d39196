"""MLflow model directories: taken in, and executed where ONNX cannot express the model."""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.converted import Converted, versions_of
from fairlead.backends.native_models import open_native, output_spec
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, ModelError, UntrustedError
from fairlead.core.extras import requires
from fairlead.core.ports import Feeds, Runner
from fairlead.core.signature import STRING, Signature, TensorSpec, conform
from fairlead.measure.features import named_features

__all__ = ["PyfuncRunner", "column_names", "keep_pyfunc", "read_mlmodel"]

_DTYPES = {
    "double": "float64",
    "float": "float32",
    "long": "int64",
    "integer": "int64",
    "boolean": "bool",
    "datetime": "float64",
}
_TRUST_HINT = "add --trust if you know where the model comes from"


def read_mlmodel(folder: Path) -> dict[str, Any]:
    """Read the MLmodel file of a directory; needs no MLflow.

    Raises:
        ModelError: It is missing, or not what MLflow writes.
    """
    import yaml

    path = folder / "MLmodel"
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        reason = str(exc).splitlines()[0]
        raise ModelError(
            f"{path} cannot be read: {reason}", hint="save the model again with MLflow"
        ) from exc
    if not isinstance(document, dict) or not isinstance(document.get("flavors"), dict):
        raise ModelError(
            f"{path} names no flavors, so it is no MLflow model",
            hint="save the model again with MLflow",
        )
    return document


def column_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the input columns that an MLmodel file names; empty for tensor signatures."""
    columns = _columns(document)
    return tuple(str(item["name"]) for item in columns if "name" in item)


def _columns(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        inputs = json.loads((document.get("signature") or {}).get("inputs") or "[]")
    except (TypeError, ValueError, AttributeError):
        return []
    if not all(isinstance(i, dict) and i.get("type") != "tensor" for i in inputs):
        return []
    return list(inputs)


class PyfuncRunner:
    """A model that MLflow or its own library executes; implements the port `Runner`."""

    def __init__(
        self,
        path: Path,
        signature: Signature,
        *,
        trust: bool = False,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        """Load the model.

        What the files are decides whether loading them runs code, not what the bundle says of
        itself: skops files and boosters are read by their own libraries, everything else goes
        through MLflow and needs trust.

        Args:
            path: The file or folder that is executed, within the MLflow model directory.
            signature: What the model takes and gives.
            trust: Whether code and pickles that came with the model may run.
            runtime: Settings for libraries that obey any.

        Raises:
            UntrustedError: Loading would run code, and `trust` is off.
            ModelError: The model cannot be loaded.
            MissingExtraError: MLflow, or the library of the model, is not installed.
        """
        self._signature = signature
        self._native: Runner | None = (
            open_native(path, signature, trust=trust, runtime=runtime) if path.is_file() else None
        )
        self._model = None if self._native is not None else load_pyfunc(_root(path), trust=trust)

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, batch dimension first."""
        return self._signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the model on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The model failed on this input.
        """
        if self._native is not None:
            return self._native.run(feeds)
        return call_pyfunc(self._model, conform(feeds, self._signature))

    def close(self) -> None:
        """Free the model."""
        if self._native is not None:
            self._native.close()
        self._native = self._model = None


def _root(path: Path) -> Path:
    for folder in (path, *path.parents):
        if (folder / "MLmodel").is_file():
            return folder
    raise ModelError(f"{path} is in no MLflow model", hint="make the bundle again")


def load_pyfunc(folder: Path, *, trust: bool) -> Any:  # noqa: ANN401 (untyped library)
    """Load an MLflow model directory with MLflow; this can run any code that it holds.

    Raises:
        UntrustedError: `trust` is off.
        ModelError: MLflow cannot load it.
        MissingExtraError: MLflow is not installed.
    """
    if not trust:
        raise UntrustedError(
            f"loading {folder} with MLflow runs code that came with it", hint=_TRUST_HINT
        )
    with requires("mlflow", needed_by="running an MLflow model"):
        pyfunc = importlib.import_module("mlflow.pyfunc")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pyfunc.load_model(str(folder), suppress_warnings=True)
    except Exception as exc:
        raise ModelError(
            f"MLflow cannot load {folder}: {_first_line(exc)}",
            hint="install the packages of its requirements.txt",
        ) from exc


def call_pyfunc(model: Any, columns: Mapping[str, Array]) -> dict[str, Array]:  # noqa: ANN401
    """Ask an MLflow model for predictions, as arrays by name.

    Raises:
        ModelError: It failed, or gave something that is not one value per row.
    """
    import pandas as pd

    frame = pd.DataFrame({name: array.reshape(len(array)) for name, array in columns.items()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = model.predict(frame)
    except Exception as exc:
        raise ModelError(
            f"the MLflow model failed on a batch: {_first_line(exc)}",
            hint="check the columns against the signature in its MLmodel file",
        ) from exc
    return _as_arrays(answer, len(frame))


def _as_arrays(answer: Any, n_rows: int) -> dict[str, Array]:  # noqa: ANN401 (any answer)
    if hasattr(answer, "columns"):
        named = {str(name): np.asarray(answer[name]) for name in answer.columns}
    elif isinstance(answer, Mapping):
        named = {str(name): np.asarray(value) for name, value in answer.items()}
    else:
        named = {"prediction": np.asarray(answer)}
    for name, array in named.items():
        if array.ndim == 0 or len(array) != n_rows:
            raise ModelError(
                f"the MLflow model gave `{name}` of shape {list(array.shape)} for {n_rows} rows",
                hint="give a model whose predict() returns one value per row",
            )
        if array.dtype.kind in "US":
            named[name] = array.astype(object)
    return named


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def keep_pyfunc(folder: Path, dataset: Dataset, *, trust: bool) -> Converted:
    """Take in an MLflow model that only MLflow can run, unchanged.

    Raises:
        UntrustedError: `trust` is off.
        ModelError: It cannot be loaded, or fails on the rows.
        DataError: A column of its signature is missing.
        MissingExtraError: MLflow is not installed.
    """
    document = read_mlmodel(folder)
    model = load_pyfunc(folder, trust=trust)
    inputs = _input_specs(document, dataset)
    named_features(dataset, [spec.name for spec in inputs])
    rows = dataset.take(slice(0, 8))
    answer = call_pyfunc(model, bind(rows, Signature(inputs=inputs, outputs=())))
    outputs = tuple(output_spec(name, array) for name, array in answer.items())
    file = _data_file(folder, document)

    def fill(target: Path) -> None:
        shutil.copytree(
            folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )

    return Converted(
        kind="pyfunc",
        model_file=file,
        fill=fill,
        runner=_Loaded(model, Signature(inputs=inputs, outputs=outputs)),
        notes=("kept unchanged, run by MLflow; loading it runs code that came with it",),
        packages=versions_of("mlflow"),
        needs_trust=True,
        keeps_mlmodel=True,
    )


class _Loaded:
    """An MLflow model that is loaded already."""

    def __init__(self, model: Any, signature: Signature) -> None:  # noqa: ANN401
        self._model = model
        self.signature = signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return call_pyfunc(self._model, conform(feeds, self.signature))

    def close(self) -> None:
        self._model = None


def _input_specs(document: Mapping[str, Any], dataset: Dataset) -> tuple[TensorSpec, ...]:
    named = {str(item["name"]): item.get("type") for item in _columns(document) if "name" in item}
    if named:
        return tuple(
            TensorSpec(name=name, dtype=_DTYPES.get(str(kind), STRING), shape=(-1,))
            for name, kind in named.items()
        )
    specs = tuple(
        TensorSpec(
            name=name, dtype=STRING if array.dtype.kind == "O" else str(array.dtype), shape=(-1,)
        )
        for name, array in dataset.columns.items()
        if array.dtype.kind in "biufO" and array.ndim == 1
    )
    if not specs:
        raise DataError(
            f"{dataset.source} has no columns that the model could take",
            hint="give the data that the model was trained on",
        )
    return specs


def _data_file(folder: Path, document: Mapping[str, Any]) -> str:
    flavor = document["flavors"].get("python_function") or {}
    for key in ("model_path", "data"):
        name = flavor.get(key)
        if isinstance(name, str) and (folder / name).exists():
            return name
    return "MLmodel"
