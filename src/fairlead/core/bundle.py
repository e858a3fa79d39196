"""The model package: an MLflow model directory plus what production needs to know about it.

    DIR/
      MLmodel  model.onnx | …  requirements.txt  conda.yaml  python_env.yaml  input_example.json
      fairlead/
        bundle.json      what it is: signature, columns, classes, kind, format number
        profile.json     reference profile of inputs and outputs
        scores.json      evaluation scores on held-back rows
        runtime.json     tuned runtime settings that serving obeys
        provenance.json  what it was made from, by which code, where
        comparison.json  how a changed model compares with its parent; only then
        digests.json     sha256 of every other file

The digest of the bundle is the digest of `digests.json`. Reading needs neither MLflow nor any
other heavy library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from fairlead.core.comparison import ModelComparison
from fairlead.core.errors import BundleError, IntegrityError, NotFoundError
from fairlead.core.files import digest_file, digest_tree, new_folder, user_path, write_json
from fairlead.core.profile import ReferenceProfile
from fairlead.core.requirements import state_runtime
from fairlead.core.signature import Signature
from fairlead.core.values import Value, describe_validation_error

__all__ = [
    "DIGESTS",
    "FORMAT_NUMBER",
    "Bundle",
    "BundleManifest",
    "ModelKind",
    "Provenance",
    "RuntimeSettings",
    "Score",
    "Scores",
    "Task",
    "copy_bundle",
    "copy_model_files",
    "derive_bundle",
    "write_bundle",
]

FORMAT_NUMBER = 1
"""Raised when a bundle written today could not be read by yesterday's code."""

Task = Literal["classification", "regression", "other"]

ModelKind = Literal["onnx", "pyfunc", "python", "ensemble"]

_FOLDER = "fairlead"
DIGESTS = f"{_FOLDER}/digests.json"
"""File with the digest of every other file; its own digest is that of the bundle."""
_MANIFEST = f"{_FOLDER}/bundle.json"


class RuntimeSettings(Value):
    """How the model runs best; measured by tuning, obeyed by serving."""

    execution_provider: str = "CPUExecutionProvider"
    """Where ONNX Runtime runs; `OpenVINO` when that library runs the model instead."""
    float_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What OpenVINO computes in wherever the model is not quantized."""
    intra_op_threads: int | None = Field(None, ge=1)
    """Threads within one operator; None lets serving divide the cores."""
    inter_op_threads: int = Field(1, ge=1)
    """Operators that run at the same time."""
    allow_spinning: bool = False
    """Whether idle threads burn CPU to wake up sooner."""
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"
    """Level of ONNX Runtime's graph rewriting."""
    use_arena: bool = True
    """Whether ONNX Runtime keeps memory for the next run instead of giving it back."""
    io_binding: bool = False
    """Whether inputs and outputs are bound before a run instead of handed over."""
    torch_compile: bool = False
    """Whether torch compiles the program when it is loaded; that takes a C++ compiler, and up to
    minutes the first time on a machine. For programs that torch runs."""
    max_batch_size: int = Field(32, ge=1)
    """Most rows that are run at once."""
    max_batch_wait_ms: float = Field(0.0, ge=0)
    """Longest time a request may wait for company."""
    padding: Mapping[str, float] = {}
    """Input → what pads its sequences, for a model that looks away from padding: sequences of
    different lengths then run together. Empty when lengths are fixed or padding is seen."""
    is_tuned: bool = False
    """Whether these settings were measured on this model."""


class Score(Value):
    """One quality metric on held-back rows, with a 95 % confidence interval."""

    metric: str
    value: float
    sample_size: int
    ci_low: float
    ci_high: float
    is_higher_better: bool = True


class Scores(Value):
    """The evaluation of a bundle; the first score is the one gates compare."""

    scores: tuple[Score, ...] = ()
    data_digest: str = ""
    label: str | None = None

    @property
    def primary(self) -> Score | None:
        """The score that gates compare, or None when there were no labels."""
        return self.scores[0] if self.scores else None


class Provenance(Value):
    """What the bundle was made from: enough to follow any prediction back."""

    made_by: str
    """The command or skill that wrote it."""
    source: str
    """Reference of the model it was made from."""
    source_digest: str
    parent_digest: str | None = None
    """Digest of the bundle this one was derived from."""
    data_source: str = ""
    data_digest: str = ""
    changes: tuple[str, ...] = ()
    """What was done to the parent, in order, over all ancestors."""
    git_commit: str | None = None
    environment: Mapping[str, str] = {}
    packages: Mapping[str, str] = {}
    """Name → version of the libraries that took part."""


class BundleManifest(Value):
    """What the bundle is."""

    format_number: int = FORMAT_NUMBER
    name: str
    kind: ModelKind
    """What executes it: ONNX Runtime, MLflow's pyfunc or the model's own library, Python code in
    the bundle, or an ensemble of bundles in the bundle."""
    model_file: str
    """Relative path of the file or folder that is executed."""
    entry: str | None = None
    """`module:name` of the class or function that Python code in the bundle is entered by."""
    task: Task
    signature: Signature
    feature_columns: tuple[str, ...] = ()
    """Columns that a single stacked input is made of, in order; empty when inputs are columns."""
    label_column: str | None = None
    classes: tuple[str | int, ...] = ()
    """Class labels in the order of the score columns."""
    prediction_output: str
    """The output that holds the predicted label or value."""
    score_output: str | None = None
    """The output that holds one score per class, shape (n_rows, n_classes)."""
    needs_trust: bool = False
    """Whether loading it runs code or pickles that came with the model."""
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


V = TypeVar("V", bound=Value)


@dataclass(frozen=True)
class Bundle:
    """A model package on disk, checked and described.

    Attributes:
        path: Its directory.
        manifest: What it is.
        runtime: How it runs best.
        scores: How good it is.
        provenance: What it was made from.
        digest: `sha256:…` that changes when any byte of any file changes.
    """

    path: Path
    manifest: BundleManifest
    runtime: RuntimeSettings
    scores: Scores
    provenance: Provenance
    digest: str

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read a bundle and check the digest of every file.

        Args:
            path: Its directory.
            verify: Whether to read and check all bytes; skip only right after writing.

        Raises:
            NotFoundError: There is no directory.
            BundleError: It is not a bundle, incomplete, or of a newer format.
            IntegrityError: A file was changed, added or removed since it was written.
        """
        folder = user_path(path)
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no bundle at {folder}", hint="make one with `fairlead pack MODEL -o DIR`"
            )
        _check_format(folder)
        if verify:
            _check_digests(folder)
        return cls(
            path=folder.resolve(),
            manifest=_read(folder, "bundle", BundleManifest),
            runtime=_read(folder, "runtime", RuntimeSettings),
            scores=_read(folder, "scores", Scores),
            provenance=_read(folder, "provenance", Provenance),
            digest=digest_file(folder / DIGESTS),
        )

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """Short form of the digest, unique enough to tell versions apart."""
        return self.digest.removeprefix("sha256:")[:12]

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self.manifest.signature

    @property
    def model_path(self) -> Path:
        """The file or folder that is executed."""
        return self.path / self.manifest.model_file

    @property
    def size_bytes(self) -> int:
        """Bytes of the executed model, its external data included."""
        target = self.model_path
        if target.is_dir():
            return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        external = target.with_name(target.name + ".data")
        extra = external.stat().st_size if external.is_file() else 0
        return target.stat().st_size + extra

    def profile(self) -> ReferenceProfile:
        """Read the reference profile.

        Raises:
            BundleError: The bundle holds none, or it cannot be read.
        """
        return _read(self.path, "profile", ReferenceProfile)

    def comparison(self) -> ModelComparison | None:
        """Read how the model compares with the one it was changed from; None when it was not.

        Raises:
            BundleError: It cannot be read.
        """
        if not (self.path / _FOLDER / "comparison.json").is_file():
            return None
        return _read(self.path, "comparison", ModelComparison)


def _load_json(path: Path) -> Any:  # noqa: ANN401 (JSON enters here)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as exc:
        raise BundleError(
            f"{path.parent.parent} lacks {path.name}, so it is not a whole bundle",
            hint="make it again with `fairlead pack`",
        ) from exc
    except (ValueError, OSError) as exc:
        raise BundleError(
            f"{path} cannot be read: {exc}", hint="make the bundle again with `fairlead pack`"
        ) from exc


def _check_format(folder: Path) -> None:
    document = _load_json(folder / _FOLDER / "bundle.json")
    number = document.get("format_number") if isinstance(document, dict) else None
    if number != FORMAT_NUMBER:
        raise BundleError(
            f"{folder} has bundle format {number!r}, this version reads {FORMAT_NUMBER}",
            hint="update fairlead, or make the bundle again with `fairlead pack`",
        )


def _check_digests(folder: Path) -> None:
    expected = _load_json(folder / DIGESTS)
    found = digest_tree(folder, without=frozenset({DIGESTS}))
    changed = sorted(n for n in set(expected) | set(found) if expected.get(n) != found.get(n))
    if not changed:
        return
    name = changed[0]
    if name not in found:
        what = "is missing"
    elif name not in expected:
        what = "was added after it was written"
    else:
        what = f"has digest {found[name][:19]}…, expected {expected[name][:19]}…"
    raise IntegrityError(
        f"{folder}/{name} {what}",
        hint="a bundle is never edited: make a new one with `fairlead pack`",
    )


def _read(folder: Path, name: str, kind: type[V]) -> V:
    path = folder / _FOLDER / f"{name}.json"
    document = _load_json(path)
    try:
        return kind.model_validate(document)
    except ValidationError as exc:
        raise BundleError(
            f"{path} does not fit: {describe_validation_error(exc)}",
            hint="make the bundle again with `fairlead pack`",
        ) from exc


def write_bundle(
    target: Path,
    *,
    fill: Callable[[Path], None],
    manifest: BundleManifest,
    profile: ReferenceProfile,
    scores: Scores,
    runtime: RuntimeSettings,
    provenance: Provenance,
    comparison: ModelComparison | None = None,
    replace: bool = False,
) -> Bundle:
    """Write a bundle atomically: after a crash there is a whole one or none.

    Args:
        target: Directory to create.
        fill: Puts the MLflow model's files into the directory it is given.
        manifest: What the bundle is.
        profile: What drift will be measured against.
        scores: How good it is.
        runtime: How it runs best.
        provenance: What it was made from.
        comparison: How it compares with the model it was changed from.
        replace: Whether an existing directory may be replaced.

    Raises:
        ConflictError: The target exists and may not be replaced.
        WorkspaceError: It cannot be written.
    """
    with new_folder(target, what="the bundle", replace=replace, marker=_MANIFEST) as folder:
        fill(folder)
        parts: dict[str, Value] = {
            "bundle": manifest,
            "profile": profile,
            "scores": scores,
            "runtime": runtime,
            "provenance": provenance,
        }
        if comparison is not None:
            parts["comparison"] = comparison
        for name, value in parts.items():
            write_json(folder / _FOLDER / f"{name}.json", value.model_dump(mode="json"))
        write_json(folder / DIGESTS, digest_tree(folder, without=frozenset({DIGESTS})))
    return Bundle.open(target, verify=False)


def copy_bundle(parent: Bundle, target: Path, *, replace: bool = False) -> Bundle:
    """Write the same bundle to another place, byte for byte, so that its digest stays.

    Raises:
        ConflictError: The target exists and may not be replaced.
        WorkspaceError: It cannot be written.
    """
    with new_folder(target, what="the bundle", replace=replace, marker=_MANIFEST) as folder:
        shutil.copytree(parent.path, folder, dirs_exist_ok=True)
    return Bundle.open(target)


def copy_model_files(source: Path, target: Path) -> None:
    """Copy a bundle's files but for what Fairlead itself knows of it; bundles in it stay whole."""

    def own(folder: str, names: list[str]) -> list[str]:
        return [_FOLDER] if Path(folder) == source and _FOLDER in names else []

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=own)


def derive_bundle(
    parent: Bundle,
    target: Path,
    *,
    made_by: str,
    change: str,
    model: bytes | None = None,
    scores: Scores | None = None,
    runtime: RuntimeSettings | None = None,
    profile: ReferenceProfile | None = None,
    packages: Mapping[str, str] | None = None,
    comparison: ModelComparison | None = None,
    replace: bool = False,
) -> Bundle:
    """Write a bundle that is its parent with something changed; the parent stays as it is.

    Args:
        parent: The bundle to start from; everything that is not given is taken over.
        target: Directory to create.
        made_by: Id of the skill that makes it.
        change: What was done, one phrase.
        model: New bytes of an ONNX model.
        scores: New evaluation, needed when the model changed.
        runtime: New runtime settings.
        profile: New reference profile.
        packages: Versions of the libraries that made the change.
        comparison: How a changed model compares with the parent's; the parent's own is taken over
            when the model stays.
        replace: Whether an existing directory may be replaced.

    Raises:
        BundleError: New model bytes for a bundle that is not ONNX.
        ConflictError: The target exists and may not be replaced.
        WorkspaceError: It cannot be written.
    """
    if model is not None and parent.manifest.kind != "onnx":
        raise BundleError(
            f"{parent.path} holds a {parent.manifest.kind} model, which cannot be rewritten",
            hint="pack a model that can be expressed in ONNX",
        )

    def fill(folder: Path) -> None:
        copy_model_files(parent.path, folder)
        if model is not None:
            file = folder / parent.manifest.model_file
            file.write_bytes(model)
            file.with_name(file.name + ".data").unlink(missing_ok=True)
        if runtime is not None:
            state_runtime(folder, runtime.execution_provider)

    old = parent.provenance
    return write_bundle(
        target,
        fill=fill,
        manifest=parent.manifest.model_copy(update={"created_at": datetime.now(UTC)}),
        profile=profile or parent.profile(),
        scores=scores or parent.scores,
        runtime=runtime or parent.runtime,
        provenance=old.model_copy(
            update={
                "made_by": made_by,
                "parent_digest": parent.digest,
                "changes": (*old.changes, change),
                "packages": {**old.packages, **(packages or {})},
            }
        ),
        comparison=comparison or (parent.comparison() if model is None else None),
        replace=replace,
    )
