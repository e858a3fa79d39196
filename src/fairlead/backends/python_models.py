"""Python classes and functions on their way into a bundle: their code is copied and tried."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.backends.code_files import CodeFiles, collect_code
from fairlead.backends.converted import Converted, versions_of
from fairlead.backends.native_models import output_spec
from fairlead.backends.python_runner import (
    CODE_FOLDER,
    INCLUDED_FOLDER,
    CodeObject,
    ModelContext,
    PythonRunner,
)
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import ConflictError, ModelError, NotFoundError
from fairlead.core.files import translated_os_errors, user_path
from fairlead.core.ports import Runner
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.version import __version__
from fairlead.measure.features import choose_features, named_features

__all__ = ["PYFUNC_FLAVOR", "convert_python", "is_model_code", "tried_outputs"]

PYFUNC_FLAVOR = {
    "python_function": {
        "loader_module": "fairlead.backends.bundle_pyfunc",
        "data": "fairlead/bundle.json",
    }
}
"""How MLflow executes a bundle that only Fairlead can."""

_SPEC = re.compile(r"(?P<dtype>\w+)\s*(\[(?P<shape>[^\]]*)\])?")
_SPEC_HINT = 'write a dtype and a shape with ? for what is free, for example "float32[?, 64]"'
_TRIED_ROWS = (1, 2, 3, 8, 64)


def is_model_code(value: Any) -> bool:  # noqa: ANN401 (whatever an import string names)
    """Whether an object is a class with `predict` or a function that needs one argument."""
    if isinstance(value, type):
        return callable(getattr(value, "predict", None)) and _is_free_of_arguments(value)
    if not inspect.isfunction(value):
        return False
    return _n_required(value) == 1


def _is_free_of_arguments(kind: type) -> bool:
    try:
        return _n_required(kind) == 0
    except (TypeError, ValueError):  # a class of a C extension shows no signature
        return True


def _n_required(function: Any) -> int:  # noqa: ANN401
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def convert_python(
    reference: str,
    dataset: Dataset,
    work: Path,
    *,
    features: Sequence[str] = (),
    include: Sequence[str | Path] = (),
    known: Mapping[str, TensorSpec] | None = None,
) -> Converted:
    """Take in a class with `predict`, or a function of one argument.

    The model is tried from the copied files, so that what is missing is missed now.

    Args:
        reference: `module:name` or `path/to/file.py:name`.
        dataset: Rows that the signature is found with.
        work: Empty folder.
        features: Columns that it takes; all of them when empty and it names none.
        include: Files and folders that `load` reads.
        known: What columns hold, where more is known than these rows show.

    Raises:
        NotFoundError: The code or an included file does not exist.
        ModelError: The code is no model, refuses the rows, or declares what it does not give.
        ModelCodeError: The code broke.
        DataError: A column is missing.
    """
    code = collect_code(reference)
    place = work / "python"
    with translated_os_errors(place, "the code of the model"):
        code.copy_to(place / CODE_FOLDER)
        _copy_included(include, place / INCLUDED_FOLDER)
    made = CodeObject(place / CODE_FOLDER, code.entry, ModelContext(place / INCLUDED_FOLDER))
    inputs, columns = _inputs(made.target, dataset, features, known or {})
    outputs = _outputs(made, inputs, columns, dataset)
    runner = PythonRunner(made, Signature(inputs=inputs, outputs=outputs))
    classes = getattr(made.target, "classes", None)

    def fill(folder: Path) -> None:
        shutil.copytree(place, folder, dirs_exist_ok=True)

    return Converted(
        kind="python",
        entry=code.entry,
        model_file=CODE_FOLDER if code.files else "MLmodel",
        fill=fill,
        runner=runner,
        feature_columns=columns,
        task=getattr(made.target, "task", None),
        classes=None if classes is None else tuple(classes),
        notes=_notes(code),
        packages={**versions_of("numpy"), **code.requirements},
        requirements=(f"fairlead=={__version__}", *_requirements(made.target, code)),
        flavors=PYFUNC_FLAVOR,
        needs_trust=True,
    )


def _requirements(target: Any, code: CodeFiles) -> tuple[str, ...]:  # noqa: ANN401
    declared = tuple(str(item) for item in getattr(target, "requirements", ()))
    named = {re.split(r"[\s<>=!~\[;@]", item, maxsplit=1)[0].lower() for item in declared}
    found = (f"{name}=={version}" for name, version in code.requirements.items()
             if name.lower() not in named)  # fmt: skip
    return (*declared, *found)


def _notes(code: CodeFiles) -> tuple[str, ...]:
    if code.files:
        shown = ", ".join(code.files[:8]) + (" and more" if len(code.files) > 8 else "")
        text = f"the code is in the bundle ({shown}), and serving it runs that code"
    else:
        text = "the code is installed as a distribution, so it is required and not copied"
    return (text,)


def _copy_included(include: Sequence[str | Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for item in include:
        source = user_path(item)
        target = folder / source.resolve().name
        if target.exists():
            raise ConflictError(
                f"two included files are named {target.name}", hint="rename one of them"
            )
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".git"))
        elif source.is_file():
            shutil.copyfile(source, target)
        else:
            raise NotFoundError(f"there is no file {item} to include", hint="check the path")


def _inputs(
    target: Any,  # noqa: ANN401
    dataset: Dataset,
    features: Sequence[str],
    known: Mapping[str, TensorSpec],
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    declared = getattr(target, "inputs", None)
    if declared:
        specs = _declared(declared, target)
        if all(spec.name in dataset.columns for spec in specs):
            return specs, ()
        columns, _ = choose_features(dataset, Signature(inputs=specs, outputs=()), features)
        if not columns:
            named_features(dataset, [spec.name for spec in specs])
        return specs, columns
    names = named_features(dataset, features or tuple(dataset.columns))
    found = (_column_spec(name, dataset.columns[name]) for name in names)
    return tuple(_as_known(spec, known) for spec in found), ()


def _as_known(spec: TensorSpec, known: Mapping[str, TensorSpec]) -> TensorSpec:
    if spec.name not in known:
        return spec
    return known[spec.name].model_copy(update={"name": spec.name})


def _column_spec(name: str, array: Array) -> TensorSpec:
    if array.dtype.kind == "M":
        return TensorSpec(name=name, dtype="float64", shape=(-1,))
    return output_spec(name, array)


def _declared(declared: Mapping[str, str], target: Any) -> tuple[TensorSpec, ...]:  # noqa: ANN401
    return tuple(_parsed(name, text, target.__name__) for name, text in declared.items())


def _parsed(name: str, text: str, owner: str) -> TensorSpec:
    match = _SPEC.fullmatch(str(text).strip())
    if match is None:
        raise ModelError(f"`{owner}` declares `{name}` as {text!r}", hint=_SPEC_HINT)
    sizes = [part.strip() for part in (match["shape"] or "?").split(",")]
    try:
        shape = tuple(-1 if size in {"?", "-1"} else int(size) for size in sizes)
        spec = TensorSpec(name=name, dtype=match["dtype"], shape=shape)
        _ = spec.numpy_dtype
    except (ValueError, TypeError) as exc:
        raise ModelError(f"`{owner}` declares `{name}` as {text!r}", hint=_SPEC_HINT) from exc
    return spec


def _outputs(
    made: CodeObject, inputs: tuple[TensorSpec, ...], columns: tuple[str, ...], dataset: Dataset
) -> tuple[TensorSpec, ...]:
    """Return what the code declares, or what it gave for batches of several sizes."""
    declared = getattr(made.target, "outputs", None)
    if declared:
        return _declared(declared, made.target)
    return tried_outputs(
        PythonRunner(made, Signature(inputs=inputs, outputs=())), columns, dataset, made.name
    )


def tried_outputs(
    runner: Runner, columns: tuple[str, ...], dataset: Dataset, owner: str
) -> tuple[TensorSpec, ...]:
    """Find out what a model gives by asking it with batches of several sizes.

    Args:
        runner: The model, whose signature knows the inputs alone.
        columns: Columns of a single stacked input.
        dataset: Rows to ask with.
        owner: Name of the model, for messages.

    Raises:
        ModelError: It fails, or gives other dtypes or ranks for other batches.
    """
    signature = runner.signature
    rows = dataset.take(slice(0, max(_TRIED_ROWS)))
    feeds = bind(rows, signature, feature_columns=columns)
    batches = [{n: a[:count] for n, a in feeds.items()} for count in _TRIED_ROWS]
    batches.append({spec.name: _shortened(feeds[spec.name], spec) for spec in signature.inputs})
    found: dict[str, TensorSpec] = {}
    for batch in batches:
        for name, array in runner.run(batch).items():
            spec = output_spec(name, array)
            found[name] = _merged(found.get(name, spec), spec, owner)
    return tuple(found.values())


def _shortened(array: Array, spec: TensorSpec) -> Array:
    """Cut what is free in length to half, to see which outputs follow."""
    sizes = zip(array.shape[1:], spec.shape[1:], strict=True)
    cuts = (slice(max(1, size // 2)) if free == -1 else slice(None) for size, free in sizes)
    return array[(slice(None), *cuts)]


def _merged(one: TensorSpec, other: TensorSpec, owner: str) -> TensorSpec:
    """Free the dimensions that differ between two batches."""
    if one.dtype != other.dtype or len(one.shape) != len(other.shape):
        raise ModelError(
            f"`{owner}` gave {one} for one batch and {other} for another",
            hint="give arrays of one dtype and rank whatever the rows are",
        )
    shape = tuple(a if a == b else -1 for a, b in zip(one.shape, other.shape, strict=True))
    return one.model_copy(update={"shape": shape})
