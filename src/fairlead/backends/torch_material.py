"""What a user brings to train with: a torch module, batches, and functions of their own.

Everything is named by import string, so all of it is the user's code.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.datasets import load_dataset
from fairlead.backends.imports import load_attribute
from fairlead.backends.torch_models import is_module
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, ModelError, UsageError
from fairlead.core.extras import requires
from fairlead.core.ports import Feeds
from fairlead.measure.quality import matched_labels

__all__ = [
    "Batch",
    "TorchMaterial",
    "as_tensors",
    "load_module",
    "module_outputs",
    "torch_material",
]

Batch = tuple[tuple[Any, ...], Any]
"""Input tensors, and the targets or None."""

_BATCH_ROWS = 64
_EVALUATION_ROWS = 256
_NEEDED_BY = "training a torch module"


@dataclass(frozen=True)
class TorchMaterial:
    """A trained module and everything needed to train it, or a smaller one, further.

    Attributes:
        reference: What the user wrote.
        module: The trained module, on the CPU, in evaluation mode; it is never changed.
        batches: Yields the training data once, as often as it is called.
        device: Where training runs: `cpu` or `cuda`.
        student: Makes a student; None when one is to be cut from the module.
        loss: Outputs and targets → loss; chosen by the task when None.
        task: Task of the bundle.
        checkpoints: Folder that training goes on from; None for nowhere.
    """

    reference: str
    module: Any = field(repr=False)
    batches: Callable[[], Iterator[Batch]] = field(repr=False)
    device: str
    student: Callable[[], Any] | None = field(default=None, repr=False)
    loss: Callable[[Any, Any], Any] | None = field(default=None, repr=False)
    task: str = "other"
    checkpoints: Path | None = None

    def copy(self) -> Any:  # noqa: ANN401 (untyped library)
        """Return a copy of the module that may be changed."""
        return copy.deepcopy(self.module).cpu()

    def example(self, n_rows: int = 2) -> tuple[Any, ...]:
        """Return the inputs of the first rows, on the CPU."""
        inputs, _ = next(self.batches())
        return tuple(tensor[:n_rows] for tensor in inputs)


def load_module(reference: str) -> Any:  # noqa: ANN401 (untyped library)
    """Return the trained module that an import string names or makes, on the CPU.

    Raises:
        NotFoundError: There is no such module or name.
        ModelError: It is no torch module, or making it failed.
        MissingExtraError: torch is not installed.
    """
    with requires("torch", needed_by=_NEEDED_BY):
        importlib.import_module("torch")
    value = _called(load_attribute(reference), reference)
    if not is_module(value):
        raise ModelError(
            f"{reference} gives a {type(value).__name__}, which is no torch.nn.Module",
            hint="name a module, or a function without arguments that returns a trained one",
        )
    return value.cpu().eval()


def _called(value: Any, reference: str) -> Any:  # noqa: ANN401
    if is_module(value) or not callable(value):
        return value
    try:
        return value()
    except (Exception, SystemExit) as exc:
        raise ModelError(
            f"calling {reference} failed: {type(exc).__name__}: {exc}".splitlines()[0],
            hint="name a function that takes no arguments",
        ) from exc


def torch_material(
    bundle: Bundle,
    *,
    model_factory: str,
    train_data: str,
    labels: str | None = None,
    student: str | None = None,
    loss: str | None = None,
    device: str = "auto",
    seed: int = 0,
    checkpoints: Path | None = None,
) -> TorchMaterial:
    """Load everything that a user named.

    Args:
        bundle: Packed from the module; says the inputs and the task.
        model_factory: `module:name` of a module or of a function that returns a trained one.
        train_data: `module:name` of batches (an iterable of `(x, y)`, or a function that returns
            one), or a reference of rows.
        labels: Column of the labels in rows; that of the bundle when None.
        student: `module:name` of a function that returns an untrained student.
        loss: `module:name` of a function of outputs and targets.
        device: `auto`, `cpu` or `cuda`.
        seed: Seed of the order of rows.
        checkpoints: Folder that training goes on from; None for nowhere.

    Raises:
        NotFoundError: Something that was named does not exist.
        ModelError: The factory gives no module.
        DataError: The training data are no batches, or empty.
        UsageError: `cuda` is wanted and not there.
        MissingExtraError: torch is not installed.
    """
    module = load_module(model_factory)
    batches = _batches(bundle, train_data, labels, seed)
    material = TorchMaterial(
        reference=model_factory,
        module=module,
        batches=batches,
        device=_device(device),
        student=None if student is None else lambda: load_module(student),
        loss=None if loss is None else load_attribute(loss),
        task=bundle.manifest.task,
        checkpoints=checkpoints,
    )
    _check_first_batch(material, train_data)
    return material


def _device(wanted: str) -> str:
    torch = importlib.import_module("torch")
    is_there = bool(torch.cuda.is_available())
    if wanted == "cuda" and not is_there:
        raise UsageError("torch finds no CUDA device", hint="use --device auto or --device cpu")
    return "cuda" if is_there and wanted != "cpu" else "cpu"


def _batches(
    bundle: Bundle, reference: str, labels: str | None, seed: int
) -> Callable[[], Iterator[Batch]]:
    if ":" in reference and not reference.startswith("sklearn:"):
        value = load_attribute(reference)
        if callable(value) and not hasattr(value, "__iter__"):
            value = _called(value, reference)
        if not isinstance(value, Dataset | Mapping) and not _is_table(value):
            return _user_batches(value, reference)
    rows = load_dataset(reference, labels=labels)
    known = bundle.manifest.label_column
    if labels is None and known is not None and known in rows.columns:
        rows = load_dataset(reference, labels=known)
    return _row_batches(bundle, rows, seed)


def _is_table(value: Any) -> bool:  # noqa: ANN401 (user's value)
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray)


def _user_batches(value: Any, reference: str) -> Callable[[], Iterator[Batch]]:  # noqa: ANN401
    if not hasattr(value, "__iter__") or hasattr(value, "__next__"):
        what = "an iterator, which can be read once only" if hasattr(value, "__next__") else "no"
        raise DataError(
            f"{reference} gives {what if what != 'no' else type(value).__name__}",
            hint="name a DataLoader, a list of batches, or a function that returns one of them",
        )

    def read() -> Iterator[Batch]:
        for item in value:
            yield _as_batch(item, reference)

    return read


def _as_batch(item: Any, reference: str) -> Batch:  # noqa: ANN401 (user's value)
    torch = importlib.import_module("torch")
    if isinstance(item, Mapping):
        values = dict(item)
        targets = values.pop("labels", values.pop("target", None))
        return tuple(values.values()), targets
    if isinstance(item, torch.Tensor):
        return (item,), None
    if isinstance(item, Sequence) and len(item) == 2:
        inputs = item[0] if isinstance(item[0], tuple | list) else (item[0],)
        return tuple(map(torch.as_tensor, inputs)), (
            None if item[1] is None else torch.as_tensor(item[1])
        )
    raise DataError(
        f"{reference} gives batches of type {type(item).__name__}",
        hint="give (inputs, targets), a tensor, or a dict with the targets as `labels`",
    )


def _row_batches(bundle: Bundle, rows: Dataset, seed: int) -> Callable[[], Iterator[Batch]]:
    torch = importlib.import_module("torch")
    manifest = bundle.manifest
    feeds = bind(rows, bundle.signature, feature_columns=manifest.feature_columns)
    inputs = [torch.from_numpy(np.array(array, order="C")) for array in feeds.values()]
    targets = None if rows.labels is None else torch.from_numpy(_targets(bundle, rows.labels))
    passes = iter(range(1 << 62))

    def read() -> Iterator[Batch]:
        order = np.random.default_rng((seed, next(passes))).permutation(rows.n_rows)
        for start in range(0, rows.n_rows, _BATCH_ROWS):
            part = torch.from_numpy(order[start : start + _BATCH_ROWS])
            yield tuple(t[part] for t in inputs), None if targets is None else targets[part]

    return read


def _targets(bundle: Bundle, labels: Array) -> Array:
    manifest = bundle.manifest
    found = matched_labels(manifest, labels) if manifest.task != "other" else labels
    if manifest.task == "classification" and manifest.classes:
        places = {value: place for place, value in enumerate(manifest.classes)}
        return np.array([places[value] for value in found.tolist()], np.int64)
    kind = np.int64 if manifest.task == "classification" else np.float32
    return np.asarray(found.astype(kind))


def _check_first_batch(material: TorchMaterial, reference: str) -> None:
    torch = importlib.import_module("torch")
    first = next(iter(material.batches()), None)
    if first is None:
        raise DataError(f"{reference} gives no batch", hint="give at least one batch")
    try:
        with torch.no_grad():
            material.module(*first[0])
    except Exception as exc:
        raise DataError(
            f"the module failed on the first batch of {reference}: "
            f"{type(exc).__name__}: {exc}".splitlines()[0],
            hint="the batches must hold what forward() takes, in its order",
        ) from exc


def module_outputs(
    module: Any,  # noqa: ANN401 (untyped library)
    feeds: Feeds,
    names: Sequence[str],
    device: str,
) -> dict[str, Array]:
    """Run a module over rows and name its outputs.

    Args:
        module: The module, on `device`.
        feeds: One array per argument, first dimension the rows.
        names: Names of the outputs, in order.
        device: Where it runs.
    """
    torch = importlib.import_module("torch")
    was_training = module.training
    module.eval()
    n_rows = len(next(iter(feeds.values())))
    pieces: list[list[Array]] = [[] for _ in names]
    with torch.no_grad():
        for start in range(0, n_rows, _EVALUATION_ROWS):
            rows = [
                torch.from_numpy(np.array(array[start : start + _EVALUATION_ROWS], order="C"))
                for array in feeds.values()
            ]
            answer = as_tensors(module(*(tensor.to(device) for tensor in rows)))
            for piece, tensor in zip(pieces, answer, strict=False):
                piece.append(tensor.float().cpu().numpy())
    module.train(was_training)
    return {name: np.concatenate(piece) for name, piece in zip(names, pieces, strict=True)}


def as_tensors(answer: Any) -> list[Any]:  # noqa: ANN401 (untyped library)
    """Return the tensors of what a module gave: one, several, or by name."""
    if isinstance(answer, Mapping):
        return list(answer.values())
    return list(answer) if isinstance(answer, tuple | list) else [answer]
