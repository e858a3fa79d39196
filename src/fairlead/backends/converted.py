"""A model on its way into a bundle: what executes it, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from fairlead.core.bundle import ModelKind, Task
from fairlead.core.ports import Runner
from fairlead.core.signature import Signature
from fairlead.measure.agreement import Agreement

__all__ = ["Converted", "versions_of"]


@dataclass(frozen=True)
class Converted:
    """What packing needs to know about a model once it is in the format it will run in.

    Attributes:
        kind: What executes it.
        model_file: Path of the executed file or folder, relative to the bundle.
        fill: Puts the model's files into the directory it is given.
        runner: The loaded model.
        feature_columns: Columns of a single stacked input, in order.
        task: Task, where the original says it.
        classes: Class labels, where the original says them.
        agreement: How close the conversion is; None when nothing was converted.
        changes: What was done to the model, in order.
        notes: What a reader should know, one sentence each.
        packages: Name → version of the libraries that took part.
        flavors: Entries of the MLmodel file beside those of an ONNX model.
        needs_trust: Whether loading it runs code that came with it.
        name: Name of the model, where the original says it.
        entry: What Python code in the bundle is entered by.
        requirements: Lines of requirements.txt beside those of known packages.
        keeps_mlmodel: Whether `fill` brings an MLmodel file that must stay as it is.
    """

    kind: ModelKind
    model_file: str
    fill: Callable[[Path], None]
    runner: Runner
    feature_columns: tuple[str, ...] = ()
    task: Task | None = None
    classes: tuple[str | int, ...] | None = None
    agreement: Agreement | None = None
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    flavors: Mapping[str, Any] = field(default_factory=dict)
    needs_trust: bool = False
    keeps_mlmodel: bool = False
    name: str | None = None
    entry: str | None = None
    requirements: tuple[str, ...] = ()

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self.runner.signature


def versions_of(*names: str) -> dict[str, str]:
    """Return name → version of the distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
