"""Models that ONNX cannot express, executed by the library they come from.

Loading them runs no code unasked: skops files are audited first, the boosters' files hold numbers
only, and torch programs need trust.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.skops import load_skops
from fairlead.backends.torch_runner import TORCH_SUFFIXES, TorchRunner, load_torch
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.dataset import Array
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Feeds, first_dimension
from fairlead.core.signature import STRING, Signature, TensorSpec, conform
from fairlead.measure.agreement import Answers

__all__ = [
    "BoosterRunner",
    "EstimatorRunner",
    "answers_of",
    "estimator_input",
    "load_booster",
    "open_native",
]

_MANY_ROWS = 10_000
"""Below, a team of threads costs an estimator more than it saves: each tree waits for all of it."""

_BOOSTERS = {
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".xgb": "xgboost",
    ".txt": "lightgbm",
    ".lgb": "lightgbm",
}


def open_native(
    file: Path,
    signature: Signature,
    *,
    trust: bool = False,
    runtime: RuntimeSettings | None = None,
) -> Any:  # noqa: ANN401
    """Load a model file without MLflow and without pickle; None when it is of another format.

    Args:
        file: The model.
        signature: What it takes and gives.
        trust: Whether code that came with the model may run.
        runtime: Settings, which torch obeys.

    Raises:
        UntrustedError: It is a skops file with types that may run code, or a torch program, and
            `trust` is off.
        ModelError: It cannot be loaded.
    """
    suffix = file.suffix.lower()
    if suffix in TORCH_SUFFIXES:
        return TorchRunner(load_torch(file, trust=trust), signature, runtime)
    if suffix == ".skops":
        return EstimatorRunner(load_skops(file, trust=trust), signature)
    if suffix in _BOOSTERS:
        return BoosterRunner(load_booster(file, _BOOSTERS[suffix]), signature)
    return None


class EstimatorRunner:
    """A scikit-learn estimator in memory; implements the port `Runner`."""

    def __init__(self, estimator: Any, signature: Signature) -> None:  # noqa: ANN401
        self._estimator = estimator
        self._signature = signature
        self._pools = importlib.import_module("threadpoolctl").ThreadpoolController()

    @property
    def signature(self) -> Signature:
        """One input per feature, or one that stacks them; `prediction` and maybe `scores`."""
        return self._signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the estimator on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The estimator failed on this input.
        """
        ready = conform(feeds, self._signature)
        few = first_dimension(ready) < _MANY_ROWS
        with self._pools.limit(limits=1) if few else nullcontext():
            answers = answers_of(self._estimator, estimator_input(self._estimator, ready))
        outputs = {"prediction": answers.predictions}
        if answers.scores is not None:
            outputs["scores"] = answers.scores
        return outputs

    def close(self) -> None:
        """Free the estimator."""
        self._estimator = None


def estimator_input(estimator: Any, columns: Mapping[str, Array]) -> Any:  # noqa: ANN401
    """Put columns into the form that the estimator was fitted on.

    Args:
        estimator: A fitted estimator.
        columns: Name → array of shape (n_rows,), (n_rows, 1), or one array that stacks all.

    Returns:
        A DataFrame when the estimator knows its columns by name, text as a flat array when it is
        the only column, else an array of shape (n_rows, n_features).
    """
    known = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    if known and (len(columns) > 1 or list(columns) == known):
        with requires("sklearn", needed_by="an estimator that knows its columns by name"):
            import pandas as pd
        return pd.DataFrame({name: _cells(array) for name, array in columns.items()})
    arrays = list(columns.values())
    if not known and len(arrays) == 1 and arrays[0].dtype.kind == "O":
        return np.array(["" if v is None else str(v) for v in arrays[0].ravel()], dtype=object)
    table = np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    if not known:
        return table
    with requires("sklearn", needed_by="an estimator that knows its columns by name"):
        import pandas as pd
    return pd.DataFrame(table, columns=known)


def _cells(array: Array) -> Array:
    flat = array.reshape(len(array))
    if flat.dtype.kind != "O":
        return flat
    cells: Array = np.empty(len(flat), dtype=object)
    cells[:] = [np.nan if value is None or value == "" else value for value in flat.tolist()]
    return cells


def answers_of(estimator: Any, rows: Any) -> Answers:  # noqa: ANN401 (an estimator and its input)
    """Ask an estimator for predictions, and for probabilities where it has them.

    Raises:
        ModelError: It failed on these rows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictions = np.asarray(estimator.predict(rows))
            has_scores = hasattr(estimator, "predict_proba")
            scores = np.asarray(estimator.predict_proba(rows)) if has_scores else None
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        raise ModelError(
            f"{type(estimator).__name__} failed on the rows: {reason}",
            hint="check that it is fitted, and that the columns are the ones it was fitted on",
        ) from exc
    if predictions.dtype.kind in "US":
        predictions = predictions.astype(object)
    if predictions.dtype.kind == "b":
        predictions = predictions.astype(np.int64)
    return Answers(predictions, scores)


class BoosterRunner:
    """An XGBoost or LightGBM booster in memory; implements the port `Runner`."""

    def __init__(self, booster: Any, signature: Signature) -> None:  # noqa: ANN401
        self._booster = booster
        self._signature = signature

    @property
    def signature(self) -> Signature:
        """One input that stacks the features, and `prediction`."""
        return self._signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the booster on one batch.

        Raises:
            SignatureError: The input is missing or of the wrong dtype or shape.
            ModelError: The booster failed on this input.
        """
        ready = conform(feeds, self._signature)
        return {"prediction": booster_answers(self._booster, next(iter(ready.values())))}

    def close(self) -> None:
        """Free the booster."""
        self._booster = None


def booster_answers(booster: Any, table: Array) -> Array:  # noqa: ANN401 (a booster)
    """Return what a booster predicts: probabilities, values or margins, as its objective says.

    Raises:
        ModelError: It failed on these rows.
    """
    try:
        if type(booster).__module__.startswith("xgboost"):
            xgboost = importlib.import_module("xgboost")
            rows = xgboost.DMatrix(
                table, feature_names=booster.feature_names, feature_types=booster.feature_types
            )
            return np.asarray(booster.predict(rows))
        return np.asarray(booster.predict(table))
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        raise ModelError(
            f"the booster failed on the rows: {reason}",
            hint="check that the columns are the ones it was trained on",
        ) from exc


def load_booster(path: Path, library: str) -> Any:  # noqa: ANN401 (a booster)
    """Load a booster from its own file format.

    Args:
        path: The file.
        library: `xgboost` or `lightgbm`.

    Raises:
        ModelError: It is no model of that library.
        MissingExtraError: The library is not installed.
    """
    with requires("boosting", needed_by=f"reading {path.name}"):
        module = importlib.import_module(library)
    try:
        if library == "xgboost":
            return module.Booster(model_file=str(path))
        module.register_logger(_Quiet())
        return module.Booster(model_file=str(path))
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        name = "an XGBoost" if library == "xgboost" else "a LightGBM"
        raise ModelError(
            f"{path} is not {name} model: {reason}",
            hint="save it again with booster.save_model(path)",
        ) from exc


class _Quiet:
    """A logger that says nothing, for a library that prints."""

    def info(self, text: str) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing."""


def stacked_signature(n_features: int, outputs: tuple[TensorSpec, ...]) -> Signature:
    """Return the signature of a model that takes all its features in one float64 input."""
    return Signature(
        inputs=(TensorSpec(name="input", dtype="float64", shape=(-1, n_features)),),
        outputs=outputs,
    )


def output_spec(name: str, array: Array) -> TensorSpec:
    """Describe an output from what it held on some rows; the batch dimension is free."""
    dtype = STRING if array.dtype.kind in "OUS" else str(array.dtype)
    return TensorSpec(name=name, dtype=dtype, shape=(-1, *array.shape[1:]))
