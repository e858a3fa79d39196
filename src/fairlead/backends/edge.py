"""A folder that runs a bundle with ONNX Runtime and numpy alone."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from fairlead.backends import edge_program
from fairlead.backends.converted import versions_of
from fairlead.backends.ensembles import read_plan, step_bundles
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array
from fairlead.core.errors import ModelError
from fairlead.core.files import digest_tree, write_text
from fairlead.core.signature import Signature, TensorSpec

__all__ = ["write_edge", "zip_folder"]

_ARCHIVE_TIME = (1980, 1, 1, 0, 0, 0)
_README = """# {name} {version}

Runs with ONNX Runtime and numpy alone: no server, no other package.

    pip install -r requirements.txt
    python run.py example.json
    python run.py --check

| | |
|---|---|
| model | {name}, {task} |
| bundle | `{digest}` |
| takes | {inputs} |
| gives | {outputs} |
| size | {size:,} bytes |
{scores}
`example.json` holds one row of the kind the model takes. `run.py` checks every input by name,
dtype and shape, and says what is wrong. In a program:

    from run import EdgeModel
    model = EdgeModel()
    model.predict({{{call}}})

`SHA256SUMS` holds the digest of every file (`sha256sum -c SHA256SUMS`).
"""


def write_edge(bundle: Bundle, folder: Path, example: dict[str, Array]) -> None:
    """Write everything that is needed to run a bundle on a small machine.

    Args:
        bundle: An ONNX bundle, or an ensemble of such.
        folder: Empty folder.
        example: One row of inputs by name.

    Raises:
        ModelError: The bundle, or a step of it, is no ONNX model.
    """
    steps = [_step(one, folder) for one in _steps_of(bundle)]
    (folder / "model.json").write_text(_json(_about(bundle, steps)))
    source = Path(sys.modules[edge_program.__name__].__file__ or "").read_text()
    (folder / "run.py").write_text(source)
    (folder / "example.json").write_text(_json(_example(bundle, example)))
    pinned = versions_of("numpy", "onnxruntime")
    lines = [f"{name}=={version}" for name, version in sorted(pinned.items())]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    (folder / "README.md").write_text(_readme(bundle))
    sums = digest_tree(folder)
    lines = [f"{digest.removeprefix('sha256:')}  {name}" for name, digest in sums.items()]
    write_text(folder / "SHA256SUMS", "\n".join(lines) + "\n")


def _json(document: Any) -> str:  # noqa: ANN401
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _steps_of(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the steps as dictionaries; `bundle` is what a step runs, None for a combination."""
    if bundle.manifest.kind != "ensemble":
        names = [spec.name for spec in bundle.signature.inputs]
        return [
            {
                "name": "model",
                "bundle": bundle,
                "inputs": {name: [f"request.{name}"] for name in names},
            }
        ]
    parts = step_bundles(bundle)
    return [
        {
            "name": step.name,
            "bundle": parts.get(step.name),
            "inputs": {name: list(sources) for name, sources in step.inputs.items()},
            "combine": step.combine,
            "weights": list(step.weights),
            "labels": list(step.labels),
        }
        for step in read_plan(bundle.path).steps
    ]


def _step(step: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy what a step runs, and return the step as `model.json` holds it."""
    part: Bundle | None = step.pop("bundle")
    found = {"combine": None, "weights": [], "labels": [], **step, "model": None, "fixed_rows": 0}
    if part is None:
        return found
    if part.manifest.kind != "onnx":
        raise ModelError(
            f"step `{step['name']}` is a {part.manifest.kind} model, which needs more than "
            "ONNX Runtime",
            hint="pack a model that can be expressed in ONNX, or serve the bundle from a container",
        )
    # Tensors kept beside a model are found by the name of their file, so every step has a folder.
    place = folder / "model" if step["name"] == "model" else folder / "steps" / step["name"]
    place.mkdir(parents=True)
    external = part.model_path.with_name(part.model_path.name + ".data")
    for file in (part.model_path, external):
        if file.is_file():
            shutil.copyfile(file, place / file.name)
    sizes = [spec.shape[0] for spec in part.signature.inputs if spec.shape]
    name = (place / part.model_path.name).relative_to(folder).as_posix()
    return found | {"model": name, "fixed_rows": max([0, *sizes])}


def _about(bundle: Bundle, steps: list[dict[str, Any]]) -> dict[str, Any]:
    manifest, runtime = bundle.manifest, bundle.runtime
    outputs = {spec.name: f"model.{spec.name}" for spec in bundle.signature.outputs}
    if manifest.kind == "ensemble":
        outputs = dict(read_plan(bundle.path).outputs)
    return {
        "name": bundle.name,
        "version": bundle.version,
        "bundle_digest": bundle.digest,
        "task": manifest.task,
        "inputs": [_spec(spec) for spec in bundle.signature.inputs],
        "feature_columns": list(manifest.feature_columns),
        "label_column": manifest.label_column,
        "outputs": outputs,
        "prediction_output": manifest.prediction_output,
        "score_output": manifest.score_output,
        "classes": list(manifest.classes),
        "steps": steps,
        "runtime": {
            "intra_op_threads": runtime.intra_op_threads,
            "allow_spinning": runtime.allow_spinning,
            "graph_optimization": runtime.graph_optimization,
        },
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    """Describe an input; a fixed number of rows is freed, for the program pads."""
    shape = [-1, *spec.shape[1:]] if spec.shape else []
    return {"name": spec.name, "dtype": spec.dtype, "shape": shape}


def _example(bundle: Bundle, example: dict[str, Array]) -> dict[str, Any]:
    columns = bundle.manifest.feature_columns
    if columns and len(example) == 1:
        (table,) = example.values()
        values = table.reshape(len(table), -1)[0].tolist()
        if len(values) == len(columns):
            return {"rows": [dict(zip(columns, values, strict=True))]}
    return {"inputs": {name: array[:1].tolist() for name, array in example.items()}}


def _readme(bundle: Bundle) -> str:
    signature: Signature = bundle.signature
    primary = bundle.scores.primary
    scores = "" if primary is None else (
        f"| {primary.metric} | {primary.value:.4g} ({primary.ci_low:.4g} to "
        f"{primary.ci_high:.4g}) on {primary.sample_size} rows |\n"
    )  # fmt: skip
    return _README.format(
        name=bundle.name,
        version=bundle.version,
        digest=bundle.digest,
        task=bundle.manifest.task,
        inputs=", ".join(f"`{spec}`" for spec in signature.inputs),
        outputs=", ".join(f"`{spec}`" for spec in signature.outputs),
        size=bundle.size_bytes,
        scores=scores,
        call=", ".join(f'"{spec.name}": array' for spec in signature.inputs),
    )


def zip_folder(folder: Path, target: Path) -> None:
    """Pack a folder into a zip file whose bytes depend on the content alone."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in digest_tree(folder):
            info = zipfile.ZipInfo(f"{folder.name}/{name}", _ARCHIVE_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, (folder / name).read_bytes())
