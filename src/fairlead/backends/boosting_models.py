"""XGBoost and LightGBM model files on their way into a bundle."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.converted import Converted, versions_of
from fairlead.backends.native_models import (
    BoosterRunner,
    booster_answers,
    load_booster,
    output_spec,
    stacked_signature,
)
from fairlead.backends.onnx_models import OnnxSource, finish_onnx, with_free_outputs
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Task
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, ModelError
from fairlead.core.extras import requires
from fairlead.measure.agreement import Agreement, Answers, agreement_of
from fairlead.measure.features import choose_features
from fairlead.measure.quality import run_batches

__all__ = ["convert_lightgbm", "convert_xgboost"]

_COMPARED_ROWS = 2000
_OPSET = 15
_SUFFIX = {"xgboost": ".ubj", "lightgbm": ".txt"}


_PROBE = """
import importlib, sys
import numpy as np
for name in ("pandas", "sklearn", "matplotlib", "pyarrow", "dask", "datatable", "polars"):
    sys.modules[name] = None  # optional for the boosters, and most of the time to import them
library = importlib.import_module(sys.argv[1])
booster = library.Booster(model_file=sys.argv[2])
is_xgboost = sys.argv[1] == "xgboost"
rng = np.random.default_rng(0)
rows = rng.normal(size=(256, booster.num_features() if is_xgboost else booster.num_feature()))
rows *= 10.0 ** rng.integers(-3, 5, size=rows.shape)
rows[rng.random(rows.shape) < 0.1] = np.nan
if is_xgboost:
    booster.save_config()
    names, kinds = booster.feature_names, booster.feature_types
    if "c" in (kinds or ()):
        rows = np.zeros_like(rows)
    booster.predict(library.DMatrix(rows, feature_names=names, feature_types=kinds))
else:
    booster.predict(rows)
"""
_PROBE_TIMEOUT_S = 120


def _check_file(path: Path, library: str) -> None:
    """Load a model file in a process of its own, because a damaged one can crash the libraries.

    Raises:
        ModelError: The process died or could not load and run it.
        MissingExtraError: The library is not installed.
    """
    with requires("boosting", needed_by=f"reading {path.name}"):
        if library in sys.modules and sys.modules[library] is None:
            raise ModuleNotFoundError(name=library)
        if importlib.util.find_spec(library) is None:
            raise ModuleNotFoundError(name=library)
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", _PROBE, library, str(path)],
        capture_output=True,
        text=True,
        timeout=_PROBE_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return
    words = [line for line in done.stderr.splitlines() if "Error" in line.split(" ")[0]]
    reason = words[-1][:200] if words and done.returncode > 0 else "the file is damaged"
    name = "an XGBoost" if library == "xgboost" else "a LightGBM"
    raise ModelError(
        f"{path} is not {name} model that can be run: {reason}",
        hint="save it again with booster.save_model(path)",
    )


@dataclass(frozen=True)
class _Booster:
    """A booster and what its file says about it."""

    library: str
    booster: Any
    objective: str
    n_classes: int
    n_features: int
    names: tuple[str, ...]
    needs_codes: bool

    @property
    def task(self) -> Task | None:
        """What the objective is for; None for ranking and custom objectives."""
        family = self.objective.split(":")[0].split("_")[0]
        if family in {"binary", "multi", "multiclass", "multiclassova"}:
            return "classification"
        kinds = {"reg", "count", "regression", "poisson", "gamma", "tweedie", "huber", "fair"}
        is_number = family in kinds | {"quantile", "mape", "cross"}
        return "regression" if is_number else None

    @property
    def classes(self) -> tuple[str | int, ...]:
        """Boosters know their classes as whole numbers from 0."""
        return tuple(range(max(self.n_classes, 2))) if self.task == "classification" else ()


def convert_xgboost(
    path: Path, dataset: Dataset, work: Path, *, features: Sequence[str] = ()
) -> Converted:
    """Take in an XGBoost model file (.ubj, .json).

    Raises:
        ModelError: It is no XGBoost model, or fails on the rows.
        DataError: The columns do not fit the model.
        MissingExtraError: XGBoost is not installed.
    """
    _check_file(path, "xgboost")
    booster = load_booster(path, "xgboost")
    learner = json.loads(booster.save_config())["learner"]
    kinds = booster.feature_types or []
    found = _Booster(
        library="xgboost",
        booster=booster,
        objective=str(learner["objective"]["name"]),
        n_classes=int(learner["learner_model_param"]["num_class"]),
        n_features=int(booster.num_features()),
        names=tuple(booster.feature_names or ()),
        needs_codes="c" in kinds or learner["gradient_booster"]["name"] != "gbtree",
    )
    return _convert(found, path, dataset, work, features)


def convert_lightgbm(
    path: Path, dataset: Dataset, work: Path, *, features: Sequence[str] = ()
) -> Converted:
    """Take in a LightGBM model file (.txt).

    Raises:
        ModelError: It is no LightGBM model, or fails on the rows.
        DataError: The columns do not fit the model.
        MissingExtraError: LightGBM is not installed.
    """
    _check_file(path, "lightgbm")
    booster = load_booster(path, "lightgbm")
    head = path.read_text(errors="replace")[:100_000]
    objective = re.search(r"^objective=(\S+)", head, re.M)
    n_classes = re.search(r"^num_class=(\d+)", head, re.M)
    found = _Booster(
        library="lightgbm",
        booster=booster,
        objective=objective.group(1) if objective else "custom",
        n_classes=int(n_classes.group(1)) if n_classes else 1,
        n_features=int(booster.num_feature()),
        names=tuple(booster.feature_name()),
        needs_codes=False,
    )
    return _convert(found, path, dataset, work, features)


def _convert(
    found: _Booster, path: Path, dataset: Dataset, work: Path, features: Sequence[str]
) -> Converted:
    signature = stacked_signature(found.n_features, ())
    names, notes = choose_features(dataset, signature, features or _real_names(found, dataset))
    rows = dataset.take(slice(0, _COMPARED_ROWS))
    table = bind(rows, signature, feature_columns=names)["input"]
    original = booster_answers(found.booster, table)
    try:
        if found.needs_codes:
            raise ModelError("its categories have no counterpart in ONNX", hint="")
        proto = _to_onnx(found)
        agreement = _compare(found, proto, table, original)
    except ModelError as exc:
        return _keep(found, path, original, names, (*notes, f"run by {found.library}: {exc}"))
    if not agreement.is_close:
        why = f"run by {found.library}: its ONNX graph disagrees with it: {agreement}"
        return _keep(found, path, original, names, (*notes, why))
    change = f"converted the {found.library} booster ({found.objective}) to ONNX"
    return finish_onnx(
        OnnxSource(proto, found.classes, (change,)),
        dataset,
        work,
        features=names,
        task=found.task,
        agreement=agreement,
        notes=notes,
        packages=(found.library, "onnxmltools"),
    )


def _real_names(found: _Booster, dataset: Dataset) -> tuple[str, ...]:
    """Return the feature names of the file, unless the library made them up."""
    is_made_up = all(re.fullmatch(r"f\d+|Column_\d+", name) for name in found.names)
    if is_made_up and not all(name in dataset.columns for name in found.names):
        return ()
    if found.library == "lightgbm":
        # LightGBM writes an underscore where a name holds white space.
        known = {re.sub(r"\s", "_", name): name for name in dataset.columns}
        return tuple(known.get(name, name) for name in found.names)
    return found.names


def _to_onnx(found: _Booster) -> Any:  # noqa: ANN401 (untyped library)
    with requires("boosting", needed_by=f"converting a {found.library} model to ONNX"):
        onnxmltools = importlib.import_module("onnxmltools")
        types = importlib.import_module("onnxmltools.convert.common.data_types")
    initial = [("input", types.FloatTensorType([None, found.n_features]))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if found.library == "lightgbm":
                proto = onnxmltools.convert_lightgbm(
                    found.booster, initial_types=initial, target_opset=_OPSET, zipmap=False
                )
            else:
                plain = copy.copy(found.booster)
                plain.feature_names = None
                proto = onnxmltools.convert_xgboost(
                    plain, initial_types=initial, target_opset=_OPSET
                )
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise ModelError(
            f"objective {found.objective} cannot be expressed in ONNX: {reason}",
            hint="pack it with the boosting libraries installed",
        ) from exc
    return with_free_outputs(proto)


def _compare(found: _Booster, proto: Any, table: Array, original: Array) -> Agreement:  # noqa: ANN401
    runner = OnnxRunner(proto.SerializeToString())
    outputs = list(run_batches(runner, {"input": table}, 512).values())
    runner.close()
    if found.task != "classification":
        values = outputs[-1].astype(np.float64)
        if values.size != original.size:
            raise ModelError("its graph gives another number of values", hint="")
        return agreement_of(
            Answers(original.reshape(-1).astype(np.float64)), Answers(values.reshape(-1))
        )
    labels, scores = outputs[0].reshape(-1), outputs[-1]
    if original.ndim == 1 and found.n_classes > 2:
        return agreement_of(Answers(original.astype(np.int64)), Answers(labels))
    table_of = original if original.ndim == 2 else np.stack([1 - original, original], axis=1)
    return agreement_of(Answers(np.argmax(table_of, axis=1), table_of), Answers(labels, scores))


def _keep(
    found: _Booster, path: Path, original: Array, names: tuple[str, ...], notes: tuple[str, ...]
) -> Converted:
    """Keep the booster's own file and run it with its own library."""
    if found.needs_codes and not np.isfinite(original.astype(np.float64)).all():
        raise DataError("the booster gave no numbers on these rows", hint="check the columns")
    file = f"model{path.suffix.lower() if path.suffix else _SUFFIX[found.library]}"
    signature = stacked_signature(found.n_features, (output_spec("prediction", original),))
    module = f"mlflow.{found.library}"
    flavor = {"data": file, "code": None}
    if found.library == "xgboost":
        flavor |= {"model_class": "xgboost.core.Booster", "model_format": path.suffix[1:] or "ubj"}
        flavor["xgb_version"] = versions_of("xgboost")["xgboost"]
    else:
        flavor |= {"model_class": "lightgbm.basic.Booster"}
        flavor["lgb_version"] = versions_of("lightgbm")["lightgbm"]

    def fill(folder: Path) -> None:
        shutil.copyfile(path, folder / file)

    return Converted(
        kind="pyfunc",
        model_file=file,
        fill=fill,
        runner=BoosterRunner(found.booster, signature),
        feature_columns=names,
        task=found.task,
        classes=found.classes or None,
        notes=notes,
        packages=versions_of(found.library, "numpy"),
        flavors={
            "python_function": {"loader_module": module, "data": file},
            found.library: flavor,
        },
    )
