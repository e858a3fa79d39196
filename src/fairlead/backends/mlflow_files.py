"""The files of an MLflow model, written by hand so that nobody needs MLflow to make one."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends import portable_loader
from fairlead.backends.converted import versions_of
from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array, Dataset
from fairlead.core.signature import STRING, TensorSpec

__all__ = ["write_mlflow_files"]

_LOADER_FILE = "loader.zip"
_EXAMPLE_ROWS = 5
_COLUMN_TYPES = {"b": "boolean", "i": "long", "u": "long", "f": "double", "M": "datetime"}


def write_mlflow_files(
    folder: Path,
    manifest: BundleManifest,
    dataset: Dataset,
    feeds: Mapping[str, Array],
    outputs: Mapping[str, Array],
    *,
    flavors: Mapping[str, Any],
    packages: Mapping[str, str],
    requirements: Sequence[str] = (),
) -> None:
    """Write MLmodel, the environment files, and an example of the input.

    Models whose values all have a column of their own get a column signature, so that MLflow
    serves them CSV and JSON rows; others get a tensor signature.

    Args:
        folder: The MLflow model directory.
        manifest: What the bundle is.
        dataset: Rows that the example and the types of the columns come from.
        feeds: Input tensors of some rows.
        outputs: What the model gave for them.
        flavors: Entries of the MLmodel file; empty for an ONNX model.
        packages: Name → version of the libraries that took part.
        requirements: Further lines of requirements.txt.
    """
    columns = _columns(manifest, dataset)
    if columns:
        inputs = [_column_type(name, dataset.columns[name]) for name in columns]
        example = _frame_example(columns, dataset)
        serving: dict[str, Any] = {"dataframe_split": example}
        info = {"type": "dataframe", "pandas_orient": "split"}
    else:
        inputs = [_tensor_type(spec) for spec in manifest.signature.inputs]
        rows = {name: _json(array[:_EXAMPLE_ROWS]) for name, array in feeds.items()}
        example = {"inputs": rows}
        serving = example
        info = {"type": "ndarray", "format": "tf-serving"}
    _write_json(folder / "input_example.json", example)
    _write_json(folder / "serving_input_example.json", serving)
    info |= {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
    }
    _write_environment(folder, _requirements(packages, requirements))
    signature = {
        "inputs": json.dumps(inputs),
        "outputs": json.dumps(_output_types(manifest, outputs, is_table=bool(columns))),
        "params": None,
    }
    _write_mlmodel(folder, manifest, flavors, signature, info)


def _columns(manifest: BundleManifest, dataset: Dataset) -> tuple[str, ...]:
    """Return the columns that the inputs are made of; empty when a value has none of its own."""
    names = manifest.feature_columns or tuple(spec.name for spec in manifest.signature.inputs)
    if not all(name in dataset.columns and dataset.columns[name].ndim == 1 for name in names):
        return ()
    return names


def _column_type(name: str, array: Array) -> dict[str, Any]:
    kind = _COLUMN_TYPES.get(array.dtype.kind, "string")
    return {"type": kind, "name": name, "required": True}


def _tensor_type(spec: TensorSpec) -> dict[str, Any]:
    dtype = "str" if spec.dtype == STRING else spec.dtype
    return {
        "type": "tensor",
        "name": spec.name,
        "tensor-spec": {"dtype": dtype, "shape": list(spec.shape)},
    }


def _output_types(
    manifest: BundleManifest, outputs: Mapping[str, Array], *, is_table: bool
) -> list[dict[str, Any]]:
    if not is_table or manifest.kind != "onnx":
        return [_tensor_type(spec) for spec in manifest.signature.outputs]
    types = []
    for name, array in outputs.items():
        width = int(np.prod(array.shape[1:]))
        labels: tuple[str | int, ...] = tuple(range(width))
        if name == manifest.score_output and len(manifest.classes) == width:
            labels = manifest.classes
        names = [name] if width == 1 else [f"{name}[{label}]" for label in labels]
        kind = _COLUMN_TYPES.get(array.dtype.kind, "string")
        types += [{"type": kind, "name": item, "required": True} for item in names]
    return types


def _frame_example(columns: tuple[str, ...], dataset: Dataset) -> dict[str, Any]:
    rows = dataset.take(slice(0, _EXAMPLE_ROWS))
    cells = [_json(rows.columns[name]) for name in columns]
    return {"columns": list(columns), "data": [list(row) for row in zip(*cells, strict=True)]}


def _json(array: Array) -> list[Any]:
    if array.dtype.kind == "M":
        return [None if np.isnat(value) else str(value) for value in array]
    if array.dtype.kind != "f":
        return list(array.tolist())
    if array.ndim > 1:
        return [_json(part) for part in array]
    return [value if np.isfinite(value) else None for value in array.tolist()]


def _write_json(path: Path, document: Any) -> None:  # noqa: ANN401
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n")


def _requirements(packages: Mapping[str, str], further: Sequence[str]) -> list[str]:
    running = {"onnxruntime", "numpy", "scikit-learn", "skops", "xgboost", "lightgbm"}
    pinned = {**versions_of("mlflow", "numpy", "pandas"), **packages}
    kept = {n: v for n, v in pinned.items() if n in running | {"mlflow", "numpy", "pandas"}}
    lines = [f"{name}=={version}" for name, version in sorted(kept.items())]
    lines += [name for name in ("mlflow", "pandas") if name not in kept]
    return [*lines, *(line for line in further if line not in lines)]


def _write_environment(folder: Path, requirements: list[str]) -> None:
    import yaml

    python = platform.python_version()
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False))
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False))


def _write_mlmodel(
    folder: Path,
    manifest: BundleManifest,
    flavors: Mapping[str, Any],
    signature: dict[str, Any],
    info: dict[str, Any],
) -> None:
    import yaml

    chosen = {name: dict(entry) for name, entry in flavors.items()}
    if not chosen:
        chosen = _onnx_flavors(folder, manifest)
    chosen["python_function"] |= {
        "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        "python_version": platform.python_version(),
    }
    document = {
        "flavors": chosen,
        "model_uuid": uuid.uuid4().hex,
        "model_size_bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
        "saved_input_example_info": info,
        "signature": signature,
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "metadata": {"fairlead_format": manifest.format_number, "name": manifest.name},
        **{f"{name}_version": version for name, version in versions_of("mlflow").items()},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document, sort_keys=False))


def _onnx_flavors(folder: Path, manifest: BundleManifest) -> dict[str, Any]:
    module = _write_loader(folder)
    return {
        "python_function": {
            "loader_module": module,
            "data": manifest.model_file,
            "code": _LOADER_FILE,
        },
        "onnx": {
            "data": manifest.model_file,
            "onnx_version": versions_of("onnx").get("onnx", ""),
            "providers": ["CPUExecutionProvider"],
            "onnx_session_options": None,
            "code": None,
        },
    }


def _write_loader(folder: Path) -> str:
    """Put the loader into the model as a zip file and return the name of its module.

    From a zip file Python imports without writing compiled files beside it, so that loading a
    bundle does not change it. The name follows the content: one process may load bundles of
    several versions.
    """
    source = Path(sys.modules[portable_loader.__name__].__file__ or "").read_bytes()
    module = f"fairlead_loader_{hashlib.sha256(source).hexdigest()[:8]}"
    with zipfile.ZipFile(folder / _LOADER_FILE, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{module}.py", (1980, 1, 1, 0, 0, 0)), source)
    return module
