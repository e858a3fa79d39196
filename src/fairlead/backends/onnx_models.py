"""ONNX files as they are handed over: read, checked, and freed of what cannot be served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.converted import Converted, versions_of
from fairlead.backends.onnx_graph import proto_bytes, sort_nodes
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Task
from fairlead.core.dataset import Dataset, bind
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.files import translated_os_errors
from fairlead.measure.agreement import Agreement
from fairlead.measure.features import choose_features

__all__ = [
    "MODEL_FILE",
    "OnnxSource",
    "convert_onnx",
    "finish_onnx",
    "read_onnx",
    "with_free_outputs",
]

MODEL_FILE = "model.onnx"

_INLINE_BYTES = 1_900_000_000
_LABEL_ATTRIBUTES = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX model in memory.

    Attributes:
        proto: The `onnx.ModelProto`.
        classes: Class labels the graph names, in the order of the scores.
        changes: What was done to it.
        origin: The file that holds exactly these bytes, when nothing was done.
    """

    proto: Any
    classes: tuple[str | int, ...] = ()
    changes: tuple[str, ...] = ()
    origin: Path | None = None


def read_onnx(path: Path) -> OnnxSource:
    """Read and check an ONNX file, its external data included.

    Raises:
        ModelError: The file is no ONNX model, breaks the standard, or lacks its external data.
        MissingExtraError: The library `onnx` is not installed.
    """
    with requires("onnx", needed_by="packing a model"):
        import onnx
    try:
        proto = onnx.load(str(path), load_external_data=False)
        is_external = any(
            map(onnx.external_data_helper.uses_external_data, proto.graph.initializer)
        )
        if is_external:
            onnx.load_external_data_for_model(proto, str(path.parent))
        is_sorted = not sort_nodes(proto)
        onnx.checker.check_model(str(path) if is_external and is_sorted else proto)
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        raise ModelError(
            f"{path} is not a valid ONNX model: {reason}",
            hint="export the model again; external data files belong beside the .onnx file",
        ) from exc
    if not proto.graph.output or not _inputs_of(proto.graph):
        missing = "inputs" if proto.graph.output else "outputs"
        raise ModelError(f"{path} has no {missing}", hint="export the model again")
    classes = _classes_in(proto.graph)
    changes = tuple(_tidied(proto.graph))
    if not is_sorted:
        changes = ("sorted the nodes of the graph", *changes)
    return OnnxSource(proto, classes, changes, None if changes or is_external else path)


def _tidied(graph: Any) -> Iterator[str]:  # noqa: ANN401 (untyped library)
    """Change the graph in place so that every output is a tensor with a free batch."""
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        _drop_zipmap(graph, node)
        yield "removed ZipMap, so that scores are a tensor"
    odd = [output for output in graph.output if not output.type.HasField("tensor_type")]
    if odd and len(odd) < len(graph.output):
        for output in odd:
            graph.output.remove(output)
        yield f"removed outputs that are no tensors: {', '.join(o.name for o in odd)}"
    if _free_outputs(graph):
        yield "declared the batch dimension of the outputs free, as it is for the inputs"


def _drop_zipmap(graph: Any, node: Any) -> None:  # noqa: ANN401 (untyped library)
    import onnx

    for output in graph.output:
        if output.name == node.output[0]:
            width = max(len(_labels_of(node)), 1)
            output.CopyFrom(
                onnx.helper.make_tensor_value_info(
                    node.input[0], onnx.TensorProto.FLOAT, ["batch", width]
                )
            )
    graph.node.remove(node)


def with_free_outputs(proto: Any) -> Any:  # noqa: ANN401 (untyped library)
    """Declare the batch dimension of the outputs free where that of the inputs is; in place."""
    _free_outputs(proto.graph)
    return proto


def _free_outputs(graph: Any) -> bool:  # noqa: ANN401 (untyped library)
    inputs = _inputs_of(graph)
    if not inputs or any(_batch_of(item) for item in inputs):
        return False
    is_changed = False
    for output in graph.output:
        if _batch_of(output):
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
            is_changed = True
    return is_changed


def _inputs_of(graph: Any) -> list[Any]:  # noqa: ANN401 (untyped library)
    initializers = {item.name for item in graph.initializer}
    return [item for item in graph.input if item.name not in initializers]


def _batch_of(value: Any) -> int:  # noqa: ANN401 (untyped library)
    """Return the fixed first dimension of a graph input or output; 0 when it is free."""
    dims = value.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if len(dims) else 0


def _labels_of(node: Any) -> tuple[str | int, ...]:  # noqa: ANN401 (untyped library)
    for attribute in node.attribute:
        if attribute.name in _LABEL_ATTRIBUTES and (attribute.ints or attribute.strings):
            return tuple(attribute.ints) or tuple(text.decode() for text in attribute.strings)
    return ()


def _classes_in(graph: Any) -> tuple[str | int, ...]:  # noqa: ANN401 (untyped library)
    """Return the class labels that a node names, or that the arg max is looked up in."""
    from onnx import numpy_helper

    for node in reversed(graph.node):
        if labels := _labels_of(node):
            return labels
    tables = {item.name: item for item in graph.initializer}
    for node in reversed(graph.node):
        if node.op_type == "ArrayFeatureExtractor" and node.input[0] in tables:
            array = numpy_helper.to_array(tables[node.input[0]]).ravel()
            if array.dtype.kind in "iu":
                return tuple(int(value) for value in array)
            if array.dtype.kind in "OSU":
                return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in array)
    return ()


def convert_onnx(
    path: Path, dataset: Dataset, work: Path, *, features: Sequence[str] = ()
) -> Converted:
    """Take in an ONNX file.

    Args:
        path: The file.
        dataset: The rows it is packed with.
        work: Empty folder for files in between.
        features: Columns of a single stacked input, in order; see `choose_features`.

    Raises:
        ModelError: The file is not a valid model, or ONNX Runtime cannot run it.
        DataError: The columns do not fit the model.
    """
    return finish_onnx(read_onnx(path), dataset, work, features=features)


def finish_onnx(
    source: OnnxSource,
    dataset: Dataset,
    work: Path,
    *,
    features: Sequence[str] = (),
    task: Task | None = None,
    agreement: Agreement | None = None,
    notes: tuple[str, ...] = (),
    packages: tuple[str, ...] = (),
) -> Converted:
    """Write the file that will be executed, load it, and choose its columns.

    Raises:
        ModelError: ONNX Runtime cannot run it.
        DataError: The columns do not fit the model.
        WorkspaceError: The file cannot be written.
    """
    target = _write(source, work)
    runner = OnnxRunner(target)
    columns, more_notes = choose_features(dataset, runner.signature, features)
    freed = _with_free_batch(source, runner, dataset, columns, work)
    if freed is not None:
        target, runner = freed
        change = "declared the batch dimension free; checked on batches of several rows"
        source = OnnxSource(source.proto, source.classes, (*source.changes, change))

    def fill(folder: Path) -> None:
        for file in target.parent.iterdir():
            shutil.copyfile(file, folder / file.name)

    return Converted(
        kind="onnx",
        model_file=MODEL_FILE,
        fill=fill,
        runner=runner,
        feature_columns=columns,
        task=task,
        classes=source.classes or None,
        agreement=agreement,
        changes=source.changes,
        notes=(*notes, *more_notes),
        packages=versions_of("onnx", "onnxruntime", *packages),
    )


def _write(source: OnnxSource, work: Path) -> Path:
    import onnx

    folder = work / f"onnx-{len(list(work.iterdir()))}"
    target = folder / MODEL_FILE
    with translated_os_errors(work, "the converted model"):
        folder.mkdir()
        if source.origin is not None:
            shutil.copyfile(source.origin, target)
        elif proto_bytes(source.proto) < _INLINE_BYTES:
            target.write_bytes(source.proto.SerializeToString())
        else:
            onnx.save_model(
                source.proto,
                str(target),
                save_as_external_data=True,
                location=f"{MODEL_FILE}.data",
            )
    return target


def _with_free_batch(
    source: OnnxSource,
    runner: OnnxRunner,
    dataset: Dataset,
    columns: tuple[str, ...],
    work: Path,
) -> tuple[Path, OnnxRunner] | None:
    """Free a batch dimension that was fixed at 1 by the export, when the graph allows it."""
    import onnx

    if not all(spec.shape and spec.shape[0] == 1 for spec in runner.signature.inputs):
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    for value in (*proto.graph.input, *proto.graph.output):
        if _batch_of(value) == 1:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]
    rows = dataset.take(slice(0, 3))
    feeds = bind(rows, runner.signature, feature_columns=columns)
    try:
        target = _write(OnnxSource(proto), work)
        freed = OnnxRunner(target)
        together = freed.run(feeds)
    except ModelError:
        return None
    for row in range(rows.n_rows):
        alone = runner.run({name: array[row : row + 1] for name, array in feeds.items()})
        for name, array in alone.items():
            if len(together[name]) != rows.n_rows or not _is_same(array[0], together[name][row]):
                return None
    source.proto.CopyFrom(proto)
    return target, freed


def _is_same(one: Any, other: Any) -> bool:  # noqa: ANN401 (arrays or scalars)
    first, second = np.asarray(one), np.asarray(other)
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    return bool(np.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True))
