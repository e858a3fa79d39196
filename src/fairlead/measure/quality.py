"""How good a model is on held-back rows: predictions, correctness per row, scores."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import BundleManifest, Scores
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, ModelError
from fairlead.core.ports import Outputs, Runner, first_dimension
from fairlead.measure.metrics import classification_scores, regression_scores

__all__ = [
    "are_written_numbers",
    "evaluate",
    "matched_labels",
    "predict",
    "predicted",
    "row_scores",
    "run_batches",
]

_SHOWN = 8
_WHOLE = re.compile(r"-?\d{1,18}")


def predict(
    runner: Runner, manifest: BundleManifest, dataset: Dataset, batch_size: int = 256
) -> dict[str, Array]:
    """Run a model over all rows of a dataset.

    Args:
        runner: The loaded model.
        manifest: Says which columns are the features.
        dataset: The rows; columns that are no features are ignored.
        batch_size: Rows per call; a model with a fixed batch dimension gets its own.

    Returns:
        One array per output, first dimension the rows.

    Raises:
        DataError: A feature column is missing or cannot be read as what the model takes.
        ModelError: The model failed on a batch, or an output has no dimension for the rows.
    """
    feeds = bind(dataset, manifest.signature, feature_columns=manifest.feature_columns)
    return run_batches(runner, feeds, batch_size)


def run_batches(
    runner: Runner, feeds: Mapping[str, Array], batch_size: int = 256
) -> dict[str, Array]:
    """Run a model over rows in batches; see `predict`."""
    n_rows = first_dimension(feeds)
    fixed = next((s.shape[0] for s in runner.signature.inputs if s.shape and s.shape[0] > 0), None)
    size = fixed or batch_size
    pieces: dict[str, list[Array]] = {}
    parts_ms: dict[str, float] = {}
    for start in range(0, n_rows, size):
        rows = min(size, n_rows - start)
        batch = {name: array[start : start + rows] for name, array in feeds.items()}
        if fixed and rows < fixed:
            batch = {name: _padded(array, fixed) for name, array in batch.items()}
        outputs = runner.run(batch)
        if isinstance(outputs, Outputs):
            for part, run_ms in outputs.parts_ms.items():
                parts_ms[part] = parts_ms.get(part, 0.0) + run_ms
        for name, array in outputs.items():
            pieces.setdefault(name, []).append(_rows_of(name, array, rows, fixed or rows))
    whole = {name: _concatenated(parts) for name, parts in pieces.items()}
    return Outputs(whole, parts_ms) if parts_ms else whole


def _concatenated(parts: list[Array]) -> Array:
    """Put batches below one another; those of shorter sequences are filled up with zeros."""
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) == 1 or len({len(shape) for shape in shapes}) > 1:
        return np.concatenate(parts)
    widest = np.max(list(shapes), axis=0)
    blank = "" if parts[0].dtype.kind == "O" else 0
    wide = []
    for part in parts:
        gaps = [(0, 0), *((0, int(w - s)) for w, s in zip(widest, part.shape[1:], strict=True))]
        wide.append(np.pad(part, gaps, constant_values=blank))
    return np.concatenate(wide)


def _padded(array: Array, size: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _rows_of(name: str, array: Array, rows: int, given: int) -> Array:
    if array.ndim == 0 or len(array) != given:
        raise ModelError(
            f"output `{name}` has shape {list(array.shape)} for a batch of {given} rows",
            hint="export the model so that the first dimension of every output is the batch",
        )
    return array[:rows]


def predicted(manifest: BundleManifest, outputs: Mapping[str, Array]) -> Array:
    """Return the predicted label or value of every row.

    A classifier whose prediction is its scores predicts the class with the highest score; with
    one score per row the second of two classes where the score is above 0.5.

    Returns:
        Shape (n_rows,): class labels (int64 or `object` holding `str`), or float64 values.

    Raises:
        ModelError: The output is missing or gives more than one value per row.
    """
    name = manifest.prediction_output
    if name not in outputs:
        raise ModelError(
            f"the model gave no output `{name}`; found {sorted(outputs)}",
            hint="make the bundle again with `fairlead pack`",
        )
    array = manifest.signature.output_numbers(name, outputs[name])
    table = array.reshape(len(array), -1)
    if manifest.task == "classification" and name == manifest.score_output:
        return _from_scores(manifest, table)
    if table.shape[1] != 1:
        raise ModelError(
            f"output `{name}` gives {table.shape[1]} values per row, so no single prediction",
            hint="pack the model with labels, so that its task is known",
        )
    column = table[:, 0]
    if manifest.task == "regression":
        return column.astype(np.float64)
    return column


def _from_scores(manifest: BundleManifest, table: Array) -> Array:
    numbers = table.astype(np.float64)
    if numbers.shape[1] == 1:
        places = (numbers[:, 0] > 0.5).astype(np.int64)
    else:
        places = np.argmax(numbers, axis=1)
    if not manifest.classes:
        return places
    return _class_array(manifest.classes)[places]


def _class_array(classes: tuple[str | int, ...]) -> Array:
    is_whole = all(isinstance(item, int) for item in classes)
    return np.array(classes, dtype=np.int64 if is_whole else object)


def matched_labels(manifest: BundleManifest, labels: Array) -> Array:
    """Return the labels in the dtype of the model's own classes or values.

    Args:
        manifest: Says the task and the classes.
        labels: Shape (n_rows,), as read from the data.

    Returns:
        Shape (n_rows,): int64, `object` holding `str`, or float64 for regression.

    Raises:
        DataError: Labels and classes are of different kinds, or a label is no class of the model.
    """
    if manifest.task == "regression":
        if labels.dtype.kind not in "biuf":
            raise _mismatch(manifest, labels)
        return labels.astype(np.float64)
    if manifest.task == "other":
        raise DataError(
            f"the task of {manifest.name} is not known, so labels cannot be compared",
            hint="pack the model again with --labels",
        )
    known = manifest.classes
    if known and all(isinstance(item, int) for item in known):
        found = _whole_numbers(manifest, labels)
    elif known:
        found = _texts(manifest, labels)
    else:
        return labels
    if not np.isin(found, _class_array(known)).all():
        raise _mismatch(manifest, labels)
    return found


def _whole_numbers(manifest: BundleManifest, labels: Array) -> Array:
    if are_written_numbers(labels):
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biuf":
        raise _mismatch(manifest, labels)
    whole = labels.astype(np.int64)
    if labels.dtype.kind == "f" and not np.array_equal(whole, labels):
        raise _mismatch(manifest, labels)
    return whole


def _texts(manifest: BundleManifest, labels: Array) -> Array:
    if labels.dtype.kind in "iu":
        return labels.astype(str).astype(object)
    if labels.dtype.kind not in "OU" or not all(isinstance(v, str) for v in labels.tolist()):
        raise _mismatch(manifest, labels)
    return labels.astype(object)


def _mismatch(manifest: BundleManifest, labels: Array) -> DataError:
    values = list(dict.fromkeys(labels.tolist()))
    strange = [value for value in values if value not in manifest.classes] or values
    shown = ", ".join(repr(value) for value in strange[:_SHOWN])
    if manifest.task == "regression":
        return DataError(
            f"the labels hold {shown}, but {manifest.name} predicts numbers",
            hint="name the column with the numbers with --labels",
        )
    classes = ", ".join(repr(value) for value in manifest.classes[:_SHOWN])
    more = ", …" if len(manifest.classes) > _SHOWN else ""
    return DataError(
        f"the labels hold {shown}, but the classes of {manifest.name} are {classes}{more}",
        hint="write the labels as the model was trained with, of the same type and values",
    )


def are_written_numbers(labels: Array) -> bool:
    """Say whether labels are whole numbers that were stored as text, like `"7"`."""
    if labels.dtype.kind not in "OU":
        return False
    return all(isinstance(v, str) and _WHOLE.fullmatch(v) is not None for v in labels.tolist())


def row_scores(
    manifest: BundleManifest, outputs: Mapping[str, Array], labels: Array
) -> NDArray[np.float64]:
    """Return how right the model was on every row; higher is better.

    Returns:
        Shape (n_rows,), float64: 1 or 0 for classification, minus the absolute error for
        regression; a row without a finite prediction counts as the worst row.

    Raises:
        DataError: The labels do not fit the model.
    """
    truth = matched_labels(manifest, labels)
    guess = predicted(manifest, outputs)
    if manifest.task == "regression":
        return _no_better_than_worst(-np.abs(guess.astype(np.float64) - truth))
    return np.asarray(guess == truth, dtype=np.float64)


def _no_better_than_worst(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give rows without a finite prediction the score of the worst row that has one."""
    is_known = np.isfinite(scores)
    worst = float(scores[is_known].min()) if is_known.any() else 0.0
    return np.where(is_known, scores, worst)


def evaluate(
    manifest: BundleManifest, outputs: Mapping[str, Array], labels: Array, data_digest: str
) -> Scores:
    """Score predictions on held-back rows, with 95 % confidence intervals.

    Args:
        manifest: Says the task, the classes and which outputs to read.
        outputs: The model's outputs, from `predict`.
        labels: Shape (n_rows,), the truth.
        data_digest: Digest of the rows.

    Returns:
        Classification: accuracy first, macro F1, then log-loss where the scores are
        probabilities and ROC AUC where there are two classes. Regression: R², RMSE, MAE over the
        rows with a finite prediction; their sample size says how many these are.

    Raises:
        DataError: The labels do not fit the model.
    """
    truth = matched_labels(manifest, labels)
    guess = predicted(manifest, outputs)
    if manifest.task == "regression":
        is_known = np.isfinite(guess.astype(np.float64)) & np.isfinite(truth)
        if not is_known.any():
            raise ModelError(
                f"{manifest.name} gives no finite number on any of {len(truth)} rows",
                hint="fill missing values, or pack the pipeline that fills them with the model",
            )
        scores = regression_scores(guess[is_known].astype(np.float64), truth[is_known])
    else:
        table = None
        if manifest.score_output is not None and manifest.classes:
            raw = outputs[manifest.score_output].astype(np.float64)
            table = raw.reshape(len(raw), -1)
        scores = classification_scores(guess, truth, manifest.classes, table)
    return Scores(scores=scores, data_digest=data_digest, label=manifest.label_column)
