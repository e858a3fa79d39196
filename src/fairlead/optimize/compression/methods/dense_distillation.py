"""Any model as a teacher of a small dense network, learnt from the rows at hand with numpy.

The student sees the teacher's soft answers (Hinton, Vinyals & Dean, 2015) on the rows and on
rows made from them, so labels are not needed. Ever larger students are tried until one keeps
the budget, the cheapest first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.dense_student import (
    DenseStudent,
    Loss,
    fit_student,
    student_model,
    table_of,
)
from fairlead.backends.onnx_graph import onnx_versions
from fairlead.core.dataset import Array
from fairlead.core.errors import ModelError
from fairlead.core.report import Measure
from fairlead.optimize.compression.bench import Bench, Compressed, Found

__all__ = ["dense_distillation"]

METHOD = "distillation"
_SIZES: tuple[tuple[int, ...], ...] = ((8,), (16,), (32,), (64,), (128,), (128, 64))
_MAX_ROWS = 4000
_MOST_FEATURES = 4096


@dataclass(frozen=True)
class _Lesson:
    """What a student learns, and where its answers belong."""

    rows: NDArray[np.float32]
    targets: NDArray[np.float32]
    loss: Loss
    score_output: str | None
    label_output: str | None
    classes: Array | None
    handles_missing: bool


def dense_distillation(bench: Bench) -> Found:
    """Find the smallest dense student that keeps the budget on the search rows.

    Raises:
        ModelError: The teacher failed on the rows.
    """
    table = table_of(bench.tensors(bench.fit))
    reason = _unfit(bench, table)
    if table is None or reason:
        return Found(METHOD, reason=f"{reason}, so no small dense network can stand in for it")
    lesson = _lesson(bench)
    if lesson is None:
        return Found(METHOD, reason="its outputs are not those of one classifier or regressor")
    tried = 0
    ladder: list[Compressed] = []
    for hidden in _students(bench, table.shape[1], lesson.targets.shape[1]):
        if tried == bench.config.max_evaluations:
            break
        tried += 1
        version = _learn(bench, lesson, hidden)
        if bench.is_good(version.model, METHOD):
            ladder.append(version)
            if len(ladder) == 2:  # one gentler student for the rows that decide
                break
    if not tried:
        return Found(METHOD, reason="it is smaller than any student worth trying")
    return Found(METHOD, tuple(ladder))


def _unfit(bench: Bench, table: NDArray[np.float32] | None) -> str:
    """Return why a network with one fixed number of inputs cannot learn from these rows."""
    if table is None:
        return "its inputs are text"
    lengths = [spec.name for spec in bench.bundle.signature.inputs if -1 in spec.shape[1:]]
    if lengths:
        return f"rows of {', '.join(lengths)} may have other sizes than those at hand"
    return "its inputs are too wide" if table.shape[1] > _MOST_FEATURES else ""


def _students(bench: Bench, n_in: int, n_out: int) -> Iterator[tuple[int, ...]]:
    """Yield the hidden layers to try: those whose weights take less than half the original."""
    if bench.config.hidden:
        yield bench.config.hidden
        return
    for hidden in _SIZES:
        sizes = (n_in, *hidden, n_out)
        weights = sum(a * b + b for a, b in itertools.pairwise(sizes))
        if 4 * weights < 0.5 * bench.bundle.size_bytes:
            yield hidden


def _lesson(bench: Bench) -> _Lesson | None:
    joined = bench.rows_to_learn(_MAX_ROWS, bench.config.copies)
    targets = _targets(bench, bench.answers(bench.original, joined))
    learnt = table_of(joined)
    if targets is None or learnt is None:
        return None
    numbers, loss, names, classes = targets
    is_known = np.isfinite(numbers).all(axis=1)
    if not is_known.any():
        return None
    return _Lesson(
        learnt[is_known], numbers[is_known], loss, *names, classes, _handles_missing(bench, joined)
    )


def _handles_missing(bench: Bench, feeds: Mapping[str, Array]) -> bool:
    """Whether the teacher answers a row without values, or such rows occur."""
    blank = {
        name: np.full_like(array[:1], np.nan) if array.dtype.kind == "f" else array[:1]
        for name, array in feeds.items()
    }
    if any(np.isnan(array).any() for array in feeds.values() if array.dtype.kind == "f"):
        return True
    try:
        answers = bench.answers(bench.original, blank)
    except ModelError:
        return False
    return all(np.isfinite(a).all() for a in answers.values() if a.dtype.kind == "f")


_Targets = tuple[NDArray[np.float32], Loss, tuple[str | None, str | None], "Array | None"]


def _targets(bench: Bench, answers: Mapping[str, Array]) -> _Targets | None:
    """Return what to learn from a teacher's answers; None when they are of another kind."""
    manifest = bench.bundle.manifest
    label, score = manifest.prediction_output, manifest.score_output
    if manifest.task == "classification" and score is not None:
        names = {label, score}
        table = answers[score].reshape(len(answers[score]), -1).astype(np.float32)
        if set(answers) != names or (label != score and len(manifest.classes) != table.shape[1]):
            return None
        is_share = bool((table >= 0).all() and np.allclose(table.sum(axis=1), 1, atol=1e-3))
        is_share = is_share and table.shape[1] > 1
        classes = np.array(manifest.classes, dtype=object) if label != score else None
        loss: Loss = "cross-entropy" if is_share else "squared"
        return table, loss, (score, label if label != score else None), classes
    if set(answers) != {label} or answers[label].dtype.kind != "f":
        return None
    table = answers[label].reshape(len(answers[label]), -1).astype(np.float32)
    return table, "squared", (label, None), None


def _learn(bench: Bench, lesson: _Lesson, hidden: tuple[int, ...]) -> Compressed:
    config = bench.config
    student = fit_student(
        lesson.rows,
        lesson.targets,
        hidden,
        loss=lesson.loss,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )
    model = student_model(
        student,
        bench.bundle.signature,
        score_output=lesson.score_output,
        label_output=lesson.label_output,
        classes=lesson.classes,
        handles_missing=lesson.handles_missing,
    )
    return _version(student, lesson, hidden, model)


def _version(
    student: DenseStudent, lesson: _Lesson, hidden: tuple[int, ...], model: bytes
) -> Compressed:
    layers = " x ".join(map(str, hidden))
    text = f"a dense student with {layers} hidden units, taught on {len(lesson.rows):,} rows"
    return Compressed(
        method=METHOD,
        change=f"{METHOD} ({text})",
        model=model,
        measures=(Measure(name="weights", value=student.n_weights, unit="count"),),
        details={"hidden": list(hidden), "weights": student.n_weights},
        packages=onnx_versions(),
        notes=(
            text,
            (
                "a student is another model: it answers alike on rows like these, and on others "
                "it may not"
            ),
        ),
    )
