"""What the outputs of a model mean: its task, its classes, and where prediction and scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairlead.core.bundle import Task
from fairlead.core.dataset import Array
from fairlead.core.errors import DataError, ModelError
from fairlead.measure.quality import are_written_numbers

__all__ = ["Roles", "find_roles"]

Classes = tuple[str | int, ...]

_SHOWN = 8


@dataclass(frozen=True)
class Roles:
    """What the outputs mean.

    Attributes:
        task: What the model does.
        classes: Labels in the order of the score columns.
        prediction_output: The output that holds the predicted label or value.
        score_output: The output that holds the scores, or None.
        notes: What was assumed, one sentence each.
    """

    task: Task
    classes: Classes
    prediction_output: str
    score_output: str | None
    notes: tuple[str, ...] = ()


def find_roles(
    outputs: Mapping[str, Array],
    labels: Array | None,
    *,
    task: Task | None = None,
    classes: Sequence[str | int] | None = None,
) -> Roles:
    """Tell the task from what the model gave on real rows, and from the labels where there are any.

    Whole-number or text outputs with one value per row are predicted labels; float outputs of
    shape (n_rows, n_classes) are scores. Where the labels are text and the predicted labels whole
    numbers, as after a label encoder, the scores belong to the labels in sorted order.

    A model whose only output is a table of scores is a classifier when the labels are classes and
    their number fits, and without labels when every row is a distribution. One float per row is a
    regression, unless the labels are two classes and all values lie between 0 and 1.

    Args:
        outputs: The model's outputs on the rows, in its order.
        labels: Shape (n_rows,), or None.
        task: Known task, for example of a scikit-learn estimator.
        classes: Known classes in the order of the score columns.

    Raises:
        DataError: The labels cannot be labels of this model.
        ModelError: The model gives no output with one row per row.
    """
    found = _sort_outputs(outputs)
    if task == "regression" and found.values:
        return Roles("regression", (), found.values[0], None)
    if task == "other":
        main = next(iter((*found.labels, *found.values, *outputs)), "")
        return Roles("other", (), main, None)
    if found.labels and task != "regression" and not _is_measured(labels, found, task):
        return _labelled(outputs, found, task, tuple(classes or ()), labels)
    if found.tables:
        return _from_table(outputs, found, task, tuple(classes or ()), labels)
    if found.values:
        return _from_values(outputs, found, task, tuple(classes or ()), labels)
    first = next(iter(outputs), None)
    if first is None:
        raise ModelError("the model gives no output", hint="export the model again")
    return Roles("other", (), first, None, ("the outputs are neither classes nor single numbers",))


@dataclass(frozen=True)
class _Sorted:
    labels: tuple[str, ...]
    tables: tuple[str, ...]
    values: tuple[str, ...]


def _sort_outputs(outputs: Mapping[str, Array]) -> _Sorted:
    labels, tables, values = [], [], []
    for name, array in outputs.items():
        per_row = int(np.prod(array.shape[1:]))
        if array.dtype.kind in "biuOUS":
            if per_row == 1:
                labels.append(name)
        elif array.ndim == 2 and per_row > 1:
            tables.append(name)
        elif per_row == 1:
            values.append(name)
    tables.sort(key=lambda name: "prob" not in name.lower())
    return _Sorted(tuple(labels), tuple(tables), tuple(values))


def _is_measured(labels: Array | None, found: _Sorted, task: Task | None) -> bool:
    """Whether labels that are no classes speak for a number output beside a label output."""
    return labels is not None and bool(found.values) and task is None and not _are_classes(labels)


def _are_classes(labels: Array) -> bool:
    if labels.dtype.kind in "biuOU":
        return True
    return bool(np.all(labels == np.round(labels)))


def _labelled(
    outputs: Mapping[str, Array],
    found: _Sorted,
    task: Task | None,
    classes: Classes,
    labels: Array | None,
) -> Roles:
    name = found.labels[0]
    scores = found.tables[0] if found.tables else None
    if scores is not None and labels is not None and _are_names(labels, outputs[name]):
        return _from_table(outputs, found, task, (), labels)
    if scores is not None:
        width = outputs[scores].shape[1]
        known = classes or _classes_by_vote(outputs[name], outputs[scores])
        if task is None or task == "classification":
            return Roles("classification", known if len(known) == width else (), name, scores)
    if task == "classification" or (task is None and labels is not None):
        return Roles("classification", classes, name, None)
    return Roles("other", (), name, None, ("without labels the task cannot be told",))


def _are_names(labels: Array, predictions: Array) -> bool:
    """Whether labels are text where the model gives the codes of a label encoder."""
    is_coded = predictions.dtype.kind in "iu" and labels.dtype.kind in "OU"
    return is_coded and not are_written_numbers(labels)


def _classes_by_vote(predictions: Array, scores: Array) -> Classes:
    """Name each score column by the label that goes with its being the highest."""
    best = np.argmax(scores, axis=1)
    flat = predictions.reshape(len(predictions))
    named: list[str | int] = []
    for column in range(scores.shape[1]):
        values, counts = np.unique(flat[best == column], return_counts=True)
        if len(values) == 0:
            return _whole_range(flat, scores.shape[1])
        named.append(_plain(values[int(np.argmax(counts))]))
    return tuple(named) if len(set(named)) == len(named) else ()


def _whole_range(labels: Array, width: int) -> Classes:
    is_whole = labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < width
    return tuple(range(width)) if is_whole else ()


def _plain(value: object) -> str | int:
    return int(value) if isinstance(value, np.integer | np.bool_ | int) else str(value)


def _from_table(
    outputs: Mapping[str, Array],
    found: _Sorted,
    task: Task | None,
    classes: Classes,
    labels: Array | None,
) -> Roles:
    name = found.tables[0]
    width = outputs[name].shape[1]
    if len(classes) == width:
        return Roles("classification", classes, name, name)
    if labels is None:
        if task == "classification" or _are_distributions(outputs[name]):
            return Roles(
                "classification",
                tuple(range(width)),
                name,
                name,
                (f"the classes are taken to be 0 to {width - 1}",),
            )
        note = "without labels the task cannot be told"
        return Roles("other", (), name, None, (note,))
    if not _are_classes(labels):
        return Roles("other", (), name, None, (f"labels are numbers, `{name}` has {width} values",))
    found_classes, notes = _classes_of(labels, width, name)
    return Roles("classification", found_classes, name, name, notes)


def _classes_of(labels: Array, width: int, name: str) -> tuple[Classes, tuple[str, ...]]:
    values = labels.astype(np.int64) if are_written_numbers(labels) else labels
    distinct = sorted(
        {_as_class(value) for value in values.tolist()}, key=lambda v: (str(type(v)), v)
    )
    if all(isinstance(value, int) and 0 <= value < width for value in distinct):
        return tuple(range(width)), ()
    if len(distinct) == width:
        order = ", ".join(repr(value) for value in distinct[:_SHOWN])
        return tuple(distinct), (f"score columns are taken to be in sorted order: {order}",)
    shown = ", ".join(repr(value) for value in distinct[:_SHOWN])
    shown += ", …" if len(distinct) > _SHOWN else ""
    raise DataError(
        f"the labels hold {len(distinct)} classes ({shown}), "
        f"but the model's output `{name}` has {width} scores per row",
        hint="check --labels; whole numbers are read as the number of the score, from 0",
    )


def _as_class(value: object) -> str | int:
    if isinstance(value, bool | int):
        return int(value)
    return int(value) if isinstance(value, float) else str(value)


def _are_distributions(table: Array) -> bool:
    numbers = table.astype(np.float64)
    return bool(
        np.isfinite(numbers).all()
        and numbers.min() >= 0
        and np.abs(numbers.sum(axis=1) - 1).max() < 1e-3
    )


def _from_values(
    outputs: Mapping[str, Array],
    found: _Sorted,
    task: Task | None,
    classes: Classes,
    labels: Array | None,
) -> Roles:
    name = found.values[0]
    numbers = outputs[name].astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    is_share = bool(len(finite)) and bool(finite.min() >= 0 and finite.max() <= 1)
    if task == "classification" and len(classes) == 2:
        return Roles("classification", classes, name, name)
    if labels is None:
        if is_share or not len(finite):
            note = "without labels a number between 0 and 1 may be a probability or a value"
            return Roles("other", (), name, None, (note,))
        return Roles("regression", (), name, None)
    distinct = (
        sorted({_as_class(v) for v in labels.tolist()}, key=str) if _are_classes(labels) else []
    )
    if is_share and distinct in ([0, 1], [0], [1]):
        return Roles("classification", (0, 1), name, name, _threshold_note(name))
    if labels.dtype.kind in "OU":
        if is_share and len(distinct) == 2:
            note = f"`{name}` is taken to be the probability of {distinct[1]!r}"
            return Roles("classification", tuple(distinct), name, name, (note,))
        raise DataError(
            f"the labels are text ({', '.join(map(repr, distinct[:_SHOWN]))}), "
            f"but the model's output `{name}` is one number per row",
            hint="name the column with the numbers with --labels",
        )
    note = f"the labels are 0 and 1, but `{name}` is no probability, so it is taken for a number"
    return Roles("regression", (), name, None, (note,) if distinct == [0, 1] else ())


def _threshold_note(name: str) -> tuple[str, ...]:
    return (f"`{name}` is taken to be the probability of class 1, cut at 0.5",)
