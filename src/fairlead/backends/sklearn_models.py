"""scikit-learn estimators on their way into a bundle: as ONNX where it agrees with the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.converted import Converted, versions_of
from fairlead.backends.native_models import (
    EstimatorRunner,
    answers_of,
    estimator_input,
    output_spec,
)
from fairlead.backends.onnx_models import OnnxSource, finish_onnx
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.skl2onnx import Layout, to_onnx
from fairlead.backends.skops import AUDITED, load_skops, save_skops, unknown_types
from fairlead.core.bundle import Task
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import ModelError, UntrustedError
from fairlead.core.files import translated_os_errors
from fairlead.core.signature import STRING, Signature, TensorSpec
from fairlead.measure.agreement import Agreement, Answers, agreement_of
from fairlead.measure.features import choose_features, named_features
from fairlead.measure.quality import run_batches

__all__ = ["convert_estimator", "convert_skops", "is_estimator"]

_COMPARED_ROWS = 2000
_SKOPS_FILE = "model.skops"


def is_estimator(value: Any) -> bool:  # noqa: ANN401 (any object)
    """Whether an object can be packed as a scikit-learn estimator."""
    return hasattr(value, "predict") and hasattr(value, "get_params")


def convert_skops(
    path: Path, dataset: Dataset, work: Path, *, trust: bool = False, features: Sequence[str] = ()
) -> Converted:
    """Take in a skops file.

    Raises:
        UntrustedError: It holds types that may run code, and `trust` is off.
        ModelError: It cannot be read, or fails on the rows.
        DataError: The columns do not fit the model.
    """
    estimator = load_skops(path, trust=trust)
    if not is_estimator(estimator):
        raise ModelError(
            f"{path} holds a {type(estimator).__name__}, not an estimator that predicts",
            hint="save the fitted classifier, regressor or pipeline",
        )
    return convert_estimator(estimator, dataset, work, trust=trust, features=features)


def convert_estimator(
    estimator: Any,  # noqa: ANN401 (untyped library)
    dataset: Dataset,
    work: Path,
    *,
    trust: bool = False,
    features: Sequence[str] = (),
) -> Converted:
    """Express a fitted estimator in ONNX, compare both on the rows, and keep the one that is right.

    float32 is tried before float64, and one stacked input before one input per column. When no
    graph agrees with the estimator, the estimator itself is kept, in skops format.

    Args:
        estimator: A fitted classifier, regressor or pipeline.
        dataset: The rows it is packed with.
        work: Folder for files in between.
        trust: Whether types that may run code may be kept.
        features: Columns in order, for an estimator that does not know their names.

    Raises:
        ModelError: It fails on the rows, or can be written neither as ONNX nor in skops format.
        DataError: The columns do not fit the model.
        UntrustedError: It can only be kept with code of its own, and `trust` is off.
    """
    names, notes = _features_of(estimator, dataset, features)
    rows = dataset.take(slice(0, _COMPARED_ROWS))
    columns = {name: rows.columns[name] for name in names}
    original = answers_of(estimator, estimator_input(estimator, columns))
    task, classes = _task_of(estimator), _classes_of(estimator)
    reasons: list[str] = []
    for layout in _layouts(estimator, columns):
        tried = _try_layout(estimator, layout, rows, names, original, reasons)
        if tried is None:
            continue
        source, agreement = tried
        return finish_onnx(
            OnnxSource(source, classes, (f"converted {type(estimator).__name__} to ONNX",)),
            dataset,
            work,
            features=names if layout.is_stacked or len(names) == 1 else (),
            task=task,
            agreement=agreement,
            notes=notes,
            packages=("scikit-learn", "skl2onnx", "xgboost", "lightgbm"),
        )
    kept = _keep(estimator, columns, original, work, trust=trust)
    why = f"kept as {type(estimator).__name__}, run by scikit-learn: {reasons[0]}"
    return Converted(
        kind="pyfunc",
        model_file=_SKOPS_FILE,
        task=task,
        classes=classes or None,
        notes=(*notes, why),
        packages=versions_of("scikit-learn", "skops", "numpy"),
        **kept,
    )


def _features_of(
    estimator: Any,  # noqa: ANN401
    dataset: Dataset,
    features: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if hasattr(estimator, "feature_names_in_"):
        return named_features(dataset, [str(name) for name in estimator.feature_names_in_]), ()
    texts = [name for name, array in dataset.columns.items() if array.dtype.kind == "O"]
    width = getattr(estimator, "n_features_in_", None)
    if width is None and not features and len(texts) == 1:
        return tuple(texts), ()
    spec = TensorSpec(name="\0input", dtype="float64", shape=(-1, width or -1))
    return choose_features(dataset, Signature(inputs=(spec,), outputs=()), features)


def _task_of(estimator: Any) -> Task:  # noqa: ANN401
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(estimator):
        return "classification"
    return "regression" if is_regressor(estimator) else "other"


def _classes_of(estimator: Any) -> tuple[str | int, ...]:  # noqa: ANN401
    if _task_of(estimator) != "classification":
        return ()
    classes = np.asarray(getattr(estimator, "classes_", ()))
    if classes.ndim != 1:
        return ()
    if classes.dtype.kind in "biuf":
        return tuple(int(value) for value in classes)
    return tuple(str(value) for value in classes)


def _layouts(estimator: Any, columns: dict[str, Array]) -> Iterator[Layout]:  # noqa: ANN401
    """Yield the inputs worth trying, the one that serves fastest first."""
    has_text = any(array.dtype.kind == "O" for array in columns.values())
    by_name = hasattr(estimator, "feature_names_in_")
    width = sum(int(np.prod(array.shape[1:])) for array in columns.values())
    if not has_text:
        yield Layout((("input", "float32", width),))
    if by_name:
        yield _per_column(columns, "float32", "float32")
        if any(array.dtype.kind in "iu" for array in columns.values()):
            yield _per_column(columns, "float32", "int64")
    elif has_text:
        yield Layout((("input", STRING, width),))
    if not has_text:
        yield Layout((("input", "float64", width),))
    if by_name:
        yield _per_column(columns, "float64", "float64")


def _per_column(columns: dict[str, Array], real: str, whole: str) -> Layout:
    kinds = {"O": STRING, "i": whole, "u": whole}
    return Layout(
        tuple((name, kinds.get(array.dtype.kind, real), 1) for name, array in columns.items())
    )


def _try_layout(
    estimator: Any,  # noqa: ANN401
    layout: Layout,
    rows: Dataset,
    names: tuple[str, ...],
    original: Answers,
    reasons: list[str],
) -> tuple[Any, Agreement] | None:
    is_classifier = _task_of(estimator) == "classification"
    try:
        proto = to_onnx(estimator, layout, is_classifier=is_classifier)
        answers = _answers_of_graph(proto, rows, names)
    except ModelError as exc:
        reasons.append(exc.message)
        return None
    if _task_of(estimator) == "regression":
        answers = Answers(answers.predictions.astype(np.float64).reshape(-1))
        original = Answers(original.predictions.astype(np.float64).reshape(-1))
    agreement = agreement_of(original, answers)
    if not agreement.is_close:
        reasons.append(f"its ONNX graph disagrees with it: {agreement}")
        return None
    return proto, agreement


def _answers_of_graph(proto: Any, rows: Dataset, names: tuple[str, ...]) -> Answers:  # noqa: ANN401
    runner = OnnxRunner(proto.SerializeToString())
    feeds = bind(rows, runner.signature, feature_columns=names)
    outputs = list(run_batches(runner, feeds, 512).values())
    runner.close()
    predictions = outputs[0].reshape(-1)
    scores = outputs[1] if len(outputs) > 1 and outputs[1].ndim == 2 else None
    return Answers(predictions, scores)


def _keep(
    estimator: Any,  # noqa: ANN401
    columns: dict[str, Array],
    original: Answers,
    work: Path,
    *,
    trust: bool,
) -> dict[str, Any]:
    """Write the estimator in skops format and describe how it will be run."""
    file = work / _SKOPS_FILE
    with translated_os_errors(work, "the model"):
        save_skops(estimator, file)
    unknown = unknown_types(file)
    if unknown and not trust:
        raise UntrustedError(
            f"{type(estimator).__name__} cannot be expressed in ONNX, and keeping it needs types "
            f"that may run code of their own: {', '.join(unknown[:10])}",
            hint="add --trust if you know where the model comes from",
        )
    by_name = hasattr(estimator, "feature_names_in_") and len(columns) > 1
    signature = Signature(
        inputs=_input_specs(columns, by_name=by_name), outputs=_output_specs(original)
    )

    def fill(folder: Path) -> None:
        (folder / _SKOPS_FILE).write_bytes(file.read_bytes())

    return {
        "fill": fill,
        "runner": EstimatorRunner(estimator, signature),
        "feature_columns": () if by_name else tuple(columns),
        "needs_trust": bool(unknown),
        "flavors": _sklearn_flavors(unknown),
    }


def _input_specs(columns: dict[str, Array], *, by_name: bool) -> tuple[TensorSpec, ...]:
    if by_name:
        return tuple(
            TensorSpec(
                name=name, dtype=STRING if array.dtype.kind == "O" else "float64", shape=(-1,)
            )
            for name, array in columns.items()
        )
    width = sum(int(np.prod(array.shape[1:])) for array in columns.values())
    has_text = any(array.dtype.kind == "O" for array in columns.values())
    return (TensorSpec(name="input", dtype=STRING if has_text else "float64", shape=(-1, width)),)


def _output_specs(original: Answers) -> tuple[TensorSpec, ...]:
    specs = [output_spec("prediction", original.predictions)]
    if original.scores is not None:
        specs.append(output_spec("scores", original.scores))
    return tuple(specs)


def _sklearn_flavors(unknown: Sequence[str]) -> dict[str, Any]:
    trusted = sorted({*unknown, *AUDITED})
    return {
        "python_function": {
            "loader_module": "mlflow.sklearn",
            "model_path": _SKOPS_FILE,
            "predict_fn": "predict",
        },
        "sklearn": {
            "pickled_model": _SKOPS_FILE,
            "serialization_format": "skops",
            "skops_trusted_types": trusted,
            "sklearn_version": versions_of("scikit-learn")["scikit-learn"],
            "code": None,
        },
    }
