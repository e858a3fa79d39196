"""torch modules on their way into a bundle: exported to ONNX, compared with themselves."""

from __future__ import annotations

import importlib
import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.converted import Converted, versions_of
from fairlead.backends.onnx_graph import read_graph, write_graph
from fairlead.backends.onnx_models import finish_onnx, read_onnx
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.python_models import PYFUNC_FLAVOR, tried_outputs
from fairlead.backends.torch_runner import TorchRunner, load_torch
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import ModelError, UntrustedError
from fairlead.core.extras import requires
from fairlead.core.files import scratch_folder, translated_os_errors
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.version import __version__
from fairlead.measure.agreement import Agreement, Answers, agreement_of
from fairlead.measure.features import choose_features
from fairlead.measure.quality import run_batches

__all__ = [
    "convert_module",
    "convert_torch_export",
    "convert_torchscript",
    "is_module",
    "module_to_onnx",
]

_NEEDED_BY = "packing a torch module"
_COMPARED_ROWS = 512
_OPSET = 18


def is_module(value: Any) -> bool:  # noqa: ANN401 (any object)
    """Whether an object is a torch module; imports torch only when the object comes from it."""
    return any(kind.__module__.startswith("torch.nn") for kind in type(value).__mro__)


def convert_torch_export(
    path: Path, dataset: Dataset, work: Path, *, trust: bool = False, features: Sequence[str] = ()
) -> Converted:
    """Take in a program that `torch.export.save` wrote.

    Raises:
        UntrustedError: `trust` is off; torch unpickles parts of these files.
        ModelError: It cannot be read, exported to ONNX, or does not agree with its ONNX graph.
        DataError: The columns do not fit the model.
        MissingExtraError: torch is not installed.
    """
    if not trust:
        raise UntrustedError(
            f"{path} is a torch export, and torch may run code that it holds when loading it",
            hint="add --trust if you know where the file comes from, or export it as ONNX",
        )
    with requires("torch", needed_by=_NEEDED_BY):
        torch = importlib.import_module("torch")
        importlib.import_module("onnxscript")
    try:
        with _quiet():
            program = torch.export.load(str(path))
    except Exception as exc:
        raise ModelError(
            f"{path} is not a torch export: {_first_line(exc)}",
            hint="write it again with torch.export.save(torch.export.export(...), path)",
        ) from exc
    names = tuple(program.graph_signature.user_inputs)
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    specs = tuple(_spec_of(name, values[name]) for name in names if name in values)
    try:
        return _export(program, program.module(), specs, dataset, work, features)
    except ModelError as exc:
        return _kept(path, specs, dataset, features, note=f"torch runs it: {exc.message}")


def convert_torchscript(
    path: Path, dataset: Dataset, *, trust: bool = False, features: Sequence[str] = ()
) -> Converted:
    """Take in a module that `torch.jit.save` wrote; torch itself will run it.

    Raises:
        UntrustedError: `trust` is off; TorchScript is code.
        ModelError: It cannot be read, or fails on the rows.
        DataError: The columns do not fit the model.
        MissingExtraError: torch is not installed.
    """
    module = load_torch(path, trust=trust)
    taken = [a.name for a in module.forward.schema.arguments[1:] if not a.has_default_value()]
    specs = _taken_specs(taken, dataset, features)
    note = "TorchScript cannot be exported to ONNX any more, so torch runs it"
    return _kept(path, specs, dataset, features, note=note)


def _kept(
    path: Path,
    specs: tuple[TensorSpec, ...],
    dataset: Dataset,
    features: Sequence[str],
    *,
    note: str,
) -> Converted:
    """Keep a program as it is, to be run by torch."""
    module = load_torch(path, trust=True)
    blind = Signature(inputs=specs, outputs=())
    columns, notes = choose_features(dataset, blind, features)
    runner = TorchRunner(module, blind)
    outputs = tried_outputs(runner, columns, dataset, path.name)
    file = f"model{path.suffix}"

    def fill(folder: Path) -> None:
        shutil.copyfile(path, folder / file)

    packages = versions_of("torch", "numpy")
    torch_version = packages.get("torch", "").partition("+")[0]
    return Converted(
        kind="pyfunc",
        model_file=file,
        fill=fill,
        runner=TorchRunner(module, Signature(inputs=specs, outputs=outputs)),
        feature_columns=columns,
        notes=(*notes, note),
        packages=packages,
        requirements=(f"fairlead=={__version__}", f"torch=={torch_version}"),
        flavors=PYFUNC_FLAVOR,
        needs_trust=True,
    )


def convert_module(
    module: Any,  # noqa: ANN401 (untyped library)
    dataset: Dataset,
    work: Path,
    *,
    features: Sequence[str] = (),
) -> Converted:
    """Take in a module: inputs named like columns take these, a single other input takes all.

    Raises:
        ModelError: It cannot be exported to ONNX, or does not agree with its ONNX graph.
        DataError: The columns do not fit the model.
        MissingExtraError: torch is not installed.
    """
    with requires("torch", needed_by=_NEEDED_BY):
        importlib.import_module("torch")
        importlib.import_module("onnxscript")
    module = module.eval()
    taken = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    specs = _taken_specs(taken, dataset, features)
    return _export(None, module, specs, dataset, work, features)


def module_to_onnx(
    module: Any,  # noqa: ANN401 (untyped library)
    feeds: dict[str, Array],
    outputs: Sequence[str],
) -> bytes:
    """Return a module as an ONNX model with a free batch.

    Args:
        module: The module, on the CPU; it is put into evaluation mode.
        feeds: A few rows, one array per argument, by the names of the inputs.
        outputs: Names of the outputs, in order.

    Raises:
        ModelError: It cannot be exported.
        MissingExtraError: torch or onnxscript is not installed.
    """
    with requires("torch", needed_by="exporting a torch module"):
        importlib.import_module("torch")
        importlib.import_module("onnxscript")
    with scratch_folder("export") as folder:
        target = folder / "model.onnx"
        _write_onnx(None, module.eval(), feeds, target)
        return _with_output_names(target, outputs)


def _with_output_names(path: Path, names: Sequence[str]) -> bytes:
    """Give the outputs of an exported graph other names; the exporter lets names clash."""
    model = read_graph(path)
    graph = model.graph
    new = {item.name: name for item, name in zip(graph.output, names, strict=True)}
    taken = {name for node in graph.node for name in node.output} - set(new)
    new |= {name: f"{name}_within" for name in taken & set(names)}
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [new.get(name, name) for name in ends]
    del graph.value_info[:]
    for item, name in zip(graph.output, names, strict=True):
        item.name = name
    return write_graph(model)


def _taken_specs(
    taken: Sequence[str], dataset: Dataset, features: Sequence[str]
) -> tuple[TensorSpec, ...]:
    """Return the inputs of a module by the names of its arguments and the columns of the rows."""
    if taken and all(name in dataset.columns for name in taken):
        return tuple(_column_spec(name, dataset.columns[name]) for name in taken)
    columns, _ = choose_features(dataset, _stacked((-1, -1)), features)
    parts = [dataset.columns[name] for name in columns]
    shape = parts[0].shape[1:] if len(parts) == 1 and parts[0].ndim > 1 else (len(parts),)
    return _stacked((-1, *shape)).inputs


def _stacked(shape: tuple[int, ...]) -> Signature:
    spec = TensorSpec(name="input", dtype="float32", shape=shape)
    return Signature(inputs=(spec,), outputs=())


def _column_spec(name: str, array: Array) -> TensorSpec:
    dtype = "int64" if array.dtype.kind in "iu" else "float32"
    return TensorSpec(name=name, dtype=dtype, shape=(-1, *array.shape[1:]))


def _spec_of(name: str, value: Any) -> TensorSpec:  # noqa: ANN401 (a fake tensor)
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape)


def _export(
    program: Any,  # noqa: ANN401
    module: Any,  # noqa: ANN401
    specs: tuple[TensorSpec, ...],
    dataset: Dataset,
    work: Path,
    features: Sequence[str],
) -> Converted:
    signature = Signature(inputs=specs, outputs=())
    columns, notes = choose_features(dataset, signature, features)
    rows = dataset.take(slice(0, _COMPARED_ROWS))
    feeds = bind(rows, signature, feature_columns=columns)
    target = work / "exported" / "model.onnx"
    with translated_os_errors(work, "the converted model"):
        target.parent.mkdir()
        _write_onnx(program, module, feeds, target)
    source = read_onnx(target)
    agreement = _compare(module, feeds, target)
    if not agreement.is_close:
        raise ModelError(
            f"the ONNX graph disagrees with the torch module: {agreement}",
            hint="look for random or data-dependent parts of the module; call .eval() first",
        )
    return finish_onnx(
        source,
        dataset,
        work,
        features=columns,
        agreement=agreement,
        notes=notes,
        packages=("torch", "onnxscript"),
    )


def _write_onnx(
    program: Any,  # noqa: ANN401
    module: Any,  # noqa: ANN401
    feeds: dict[str, Array],
    target: Path,
) -> None:
    torch = importlib.import_module("torch")
    # A free dimension must not be traced with one row: torch would take it for a constant.
    shown = {name: np.concatenate([array[:2], array[:1]])[:2] for name, array in feeds.items()}
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in shown.values())
    free = tuple({0: torch.export.Dim("batch")} for _ in arguments)
    options: dict[str, Any] = {
        "input_names": list(feeds),
        "dynamo": True,
        "opset_version": _OPSET,
        "external_data": False,
        "verbose": False,
    }
    try:
        with _quiet():
            if program is not None:
                torch.onnx.export(program, (), str(target), **options)
            else:
                torch.onnx.export(module, arguments, str(target), dynamic_shapes=free, **options)
    except OSError:
        raise
    except Exception as exc:
        raise ModelError(
            f"the torch module cannot be exported to ONNX: {_first_line(exc)}",
            hint="export it yourself with torch.onnx.export and pack the .onnx file; data whose "
            "rows have the shape that forward() takes (.npz) helps",
        ) from exc


def _compare(module: Any, feeds: dict[str, Array], target: Path) -> Agreement:  # noqa: ANN401
    torch = importlib.import_module("torch")
    runner = OnnxRunner(target)
    converted = next(iter(run_batches(runner, feeds, 128).values()))
    size = runner.signature.inputs[0].shape[0]
    runner.close()
    step = size if size > 0 else 128
    pieces = []
    n_rows = len(next(iter(feeds.values())))
    whole = n_rows - n_rows % step if size > 0 else n_rows
    with torch.no_grad():
        for start in range(0, whole, step):
            rows = [
                torch.from_numpy(np.ascontiguousarray(a[start : start + step]))
                for a in feeds.values()
            ]
            answer = module(*rows)
            pieces.append((answer[0] if isinstance(answer, tuple | list) else answer).numpy())
    if not pieces:
        return Agreement(0, 0, 0.0)
    original = np.concatenate(pieces).astype(np.float64)
    return _agreement(original, converted[: len(original)].astype(np.float64))


def _agreement(original: Array, converted: Array) -> Agreement:
    if original.ndim == 2 and original.shape[1] > 1:
        largest = max(1.0, float(np.abs(original).max()))
        return agreement_of(
            Answers(np.argmax(original, axis=1), original / largest),
            Answers(np.argmax(converted, axis=1), converted / largest),
        )
    return agreement_of(Answers(original.reshape(-1)), Answers(converted.reshape(-1)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's talk off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
