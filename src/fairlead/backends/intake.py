"""One door for every format of a model: what was handed over becomes what can be executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairlead.backends.boosting_models import convert_lightgbm, convert_xgboost
from fairlead.backends.converted import Converted
from fairlead.backends.ensemble_packing import convert_ensemble
from fairlead.backends.imports import load_attribute
from fairlead.backends.mlflow import column_names, keep_pyfunc, load_pyfunc, read_mlmodel
from fairlead.backends.onnx_models import convert_onnx
from fairlead.backends.python_models import convert_python, is_model_code
from fairlead.backends.runners import open_runner
from fairlead.backends.sklearn_models import convert_estimator, convert_skops, is_estimator
from fairlead.backends.torch_models import (
    convert_module,
    convert_torch_export,
    convert_torchscript,
    is_module,
)
from fairlead.core.artifact import Artifact
from fairlead.core.bundle import Bundle, copy_model_files
from fairlead.core.dataset import Dataset
from fairlead.core.ensemble import read_draft
from fairlead.core.errors import ModelError, UsageError

__all__ = ["take_in"]


def take_in(
    artifact: Artifact,
    dataset: Dataset,
    work: Path,
    *,
    trust: bool = False,
    features: Sequence[str] = (),
    include: Sequence[str | Path] = (),
) -> Converted:
    """Bring a model into the format it will run in.

    Args:
        artifact: What was handed over.
        dataset: The rows it is packed with.
        work: Empty folder for files in between.
        trust: Whether code and pickles that came with the model may run.
        features: Columns of a single stacked input, in order.
        include: Files that Python code loads.

    Raises:
        UsageError: Files are included for a model that is no Python code.
        ModelError: It cannot be read or converted.
        UntrustedError: Loading would run code, and `trust` is off.
        DataError: The columns do not fit the model.
        MissingExtraError: A library that it needs is not installed.
    """
    if artifact.format == "import-string":
        return _from_import(artifact.reference, dataset, work, trust, features, include)
    if include:
        raise UsageError(
            f"{artifact.reference} is no Python code, so nothing would read the included files",
            hint="leave --include out, or pack a class whose load() reads them",
        )
    path = Path(artifact.path or "")
    if artifact.format == "bundle":
        return _from_bundle(path, dataset, work, trust, features)
    if artifact.format == "ensemble":
        draft = read_draft(path)
        return convert_ensemble(
            draft, dataset, work, base=path.parent, trust=trust, features=features
        )
    if artifact.format == "mlflow":
        return _from_mlflow(path, dataset, work, trust, features)
    return _from_file(artifact.format, path, dataset, work, trust, features)


def _from_file(
    kind: str, path: Path, dataset: Dataset, work: Path, trust: bool, features: Sequence[str]
) -> Converted:
    if kind == "skops":
        return convert_skops(path, dataset, work, trust=trust, features=features)
    if kind == "torch-export":
        return convert_torch_export(path, dataset, work, trust=trust, features=features)
    if kind == "torchscript":
        return convert_torchscript(path, dataset, trust=trust, features=features)
    converters: dict[str, Callable[..., Converted]] = {
        "onnx": convert_onnx,
        "xgboost": convert_xgboost,
        "lightgbm": convert_lightgbm,
    }
    return converters[kind](path, dataset, work, features=features)


def _from_import(
    reference: str,
    dataset: Dataset,
    work: Path,
    trust: bool,
    features: Sequence[str],
    include: Sequence[str | Path],
) -> Converted:
    value = load_attribute(reference)
    if is_model_code(value):
        return convert_python(reference, dataset, work, features=features, include=include)
    is_model = is_estimator(value) or is_module(value)
    if isinstance(value, type) or (callable(value) and not is_model):
        value = _made_by(value, reference)
    if is_module(value):
        return convert_module(value, dataset, work, features=features)
    if is_estimator(value):
        return convert_estimator(value, dataset, work, trust=trust, features=features)
    raise ModelError(
        f"{reference} is a {type(value).__name__}, neither an estimator nor a torch module, "
        "nor code that predicts",
        hint="name a fitted estimator, a torch module, a function that returns one, or a class "
        "with predict(self, inputs)",
    )


def _made_by(factory: Callable[[], Any], reference: str) -> Any:  # noqa: ANN401
    try:
        return factory()
    except (Exception, SystemExit) as exc:
        raise ModelError(
            f"calling {reference} failed: {type(exc).__name__}: {exc}".splitlines()[0],
            hint="name a function that takes no arguments and returns the model",
        ) from exc


def _from_bundle(
    path: Path, dataset: Dataset, work: Path, trust: bool, features: Sequence[str]
) -> Converted:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if manifest.kind == "onnx":
        names = features or manifest.feature_columns
        converted = convert_onnx(bundle.model_path, dataset, work, features=names)
    else:
        runner = open_runner(bundle, trust=trust)

        def fill(folder: Path) -> None:
            copy_model_files(bundle.path, folder)

        converted = Converted(
            kind=manifest.kind,
            entry=manifest.entry,
            model_file=manifest.model_file,
            fill=fill,
            runner=runner,
            feature_columns=manifest.feature_columns,
            needs_trust=manifest.needs_trust,
            keeps_mlmodel=True,
        )
    return replace(
        converted,
        task=None if manifest.task == "other" else manifest.task,
        classes=manifest.classes or converted.classes,
        changes=(*bundle.provenance.changes, *converted.changes),
        packages={**bundle.provenance.packages, **converted.packages},
    )


def _from_mlflow(
    path: Path, dataset: Dataset, work: Path, trust: bool, features: Sequence[str]
) -> Converted:
    """Take in the model behind an MLflow directory, by its most direct flavor."""
    document = read_mlmodel(path)
    flavors: dict[str, dict[str, Any]] = document["flavors"]
    file = _native_file(path, flavors)
    if file is None:
        if trust and "sklearn" in flavors:
            estimator = _unwrapped(path)
            if is_estimator(estimator):
                return convert_estimator(estimator, dataset, work, trust=True, features=features)
        return keep_pyfunc(path, dataset, trust=trust)
    kind, target = file
    names = tuple(features) or _stacked_names(document, dataset, kind)
    return _from_file(kind, target, dataset, work, trust, names)


def _native_file(path: Path, flavors: dict[str, dict[str, Any]]) -> tuple[str, Path] | None:
    """Return format and file of a flavor that needs no pickle."""
    keys = {"onnx": "data", "sklearn": "pickled_model", "xgboost": "data", "lightgbm": "data"}
    for name, key in keys.items():
        value = (flavors.get(name) or {}).get(key)
        if not isinstance(value, str):
            continue
        target = (path / value).resolve()
        if not target.is_file() or path.resolve() not in target.parents:
            continue
        if name == "sklearn" and target.suffix == ".skops":
            return "skops", target
        if name != "sklearn" and target.suffix not in {".pkl", ".pickle"}:
            return name, target
    return None


def _stacked_names(document: dict[str, Any], dataset: Dataset, kind: str) -> tuple[str, ...]:
    names = column_names(document)
    if kind == "skops" or not names or not all(name in dataset.columns for name in names):
        return ()
    return names


def _unwrapped(path: Path) -> Any:  # noqa: ANN401 (an estimator, or MLflow's wrapper)
    model = load_pyfunc(path, trust=True)
    return model.get_raw_model() if hasattr(model, "get_raw_model") else model
