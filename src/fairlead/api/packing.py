"""`pack`: a model in any format becomes a bundle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fairlead.api.context import Context
from fairlead.backends.datasets import load_dataset
from fairlead.core.artifact import Artifact
from fairlead.core.bundle import (
    Bundle,
    BundleManifest,
    Provenance,
    RuntimeSettings,
    Scores,
    write_bundle,
)
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import ConflictError
from fairlead.core.evidence import Evidence, current_environment
from fairlead.core.files import scratch_folder, user_path
from fairlead.core.profile import ReferenceProfile
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.measure.profile import build_profile, flatten_inputs, flatten_outputs
from fairlead.measure.quality import evaluate, run_batches
from fairlead.measure.roles import Roles, find_roles

if TYPE_CHECKING:
    from fairlead.backends.converted import Converted

__all__ = ["pack"]

_SKILL = "pack"
_BATCH_ROWS = 256
_PROFILE_ROWS = 100_000
_RUN_BY = {
    "onnx": "ONNX Runtime",
    "pyfunc": "its own library",
    "python": "its own code",
    "ensemble": "the bundles in it",
}


def pack(
    model: str | Path,
    *,
    data: str | Path | Dataset,
    labels: str | None = None,
    out: str | Path,
    name: str | None = None,
    features: Sequence[str] = (),
    include: Sequence[str | Path] = (),
    preprocess: str | None = None,
    postprocess: str | None = None,
    trust: bool = False,
    replace: bool = False,
    context: Context | None = None,
) -> Outcome[Bundle]:
    """Turn a trained model into a bundle: an MLflow model plus what production needs to know.

    The rows are what the model is judged by and what drift is measured against later, so they
    should be held back from training and look like production.

    Args:
        model: An ONNX, skops, XGBoost, LightGBM or torch-export file, an MLflow model directory, a
            bundle, `module:attribute`, `file.py:attribute`, or an ensemble (`.toml`).
        data: Rows, see `fairlead.backends.datasets.load_dataset`.
        labels: Column with the truth; without it the bundle has no scores.
        out: Directory to create.
        name: Name of the model; the name of its file when None.
        features: Columns of the model's single input, in order; for models that do not name them,
            when the data has further numeric columns.
        include: Files and folders that Python code loads; they are copied into the bundle.
        preprocess: `file.py:name` of a function that turns the columns of a request into those of
            the model; it becomes part of the bundle.
        postprocess: `file.py:name` of a function that turns the model's outputs into the answer.
        trust: Whether code and pickles that came with the model may run.
        replace: Whether an existing directory may be replaced.
        context: Workspace and progress; opened from the environment when None.

    Returns:
        The bundle, and a report with its scores and what was done to the model.

    Raises:
        NotFoundError: There is no such model or data.
        ModelError: The model cannot be read, converted or run, or its conversion disagrees with it.
        UntrustedError: Loading it would run code, and `trust` is off.
        DataError: The rows do not fit: missing columns, wrong number of values, missing labels.
        ConflictError: The target exists and may not be replaced.
        WorkspaceError: The target or the workspace cannot be written.
        MissingExtraError: A library that the format needs is not installed.
    """
    target = user_path(out)
    _check_target(target, replace=replace)
    ctx = (context or Context.open()).ready_to_record()
    rows = data if isinstance(data, Dataset) else load_dataset(data, labels=labels)
    artifact = Artifact.from_reference(str(model))
    given = _Given(artifact, tuple(include), preprocess, postprocess, tuple(features), trust)
    progress = ctx.progress
    progress.begin(f"pack {artifact.format} model", total=3)
    with scratch_folder("pack") as folder:
        converted = _taken_in(given, rows, folder)
        progress.advance()
        packing = _examine(converted, rows, name or converted.name or _default_name(artifact))
        progress.advance()
        bundle = _write(packing, artifact, target, replace=replace)
        progress.advance()
        converted.runner.close()
    return ctx.record(_outcome(bundle, packing))


@dataclass(frozen=True)
class _Given:
    """What was handed over to be packed."""

    artifact: Artifact
    include: tuple[str | Path, ...]
    preprocess: str | None
    postprocess: str | None
    features: tuple[str, ...]
    trust: bool


def _taken_in(given: _Given, rows: Dataset, folder: Path) -> Converted:
    """Bring the model into the format it will run in, with the code around it."""
    from fairlead.api.wrapping import wrap
    from fairlead.backends.intake import take_in

    artifact, trust = given.artifact, given.trust
    if given.preprocess is None and given.postprocess is None:
        return take_in(
            artifact, rows, folder, trust=trust, features=given.features, include=given.include
        )

    def pack_model(reached: Dataset, features: Sequence[str], place: Path) -> Bundle:
        work = folder / "inner"
        work.mkdir()
        inner = take_in(
            artifact, reached, work, trust=trust, features=features, include=given.include
        )
        packing = _examine(inner, reached, _default_name(artifact))
        inner.runner.close()
        return _write(packing, artifact, place, replace=False)

    return wrap(
        rows,
        folder,
        pack_model=pack_model,
        preprocess=given.preprocess,
        postprocess=given.postprocess,
        features=given.features,
        trust=trust,
    )


@dataclass(frozen=True)
class _Packing:
    """Everything that is known about the model before it is written."""

    converted: Converted
    rows: Dataset
    roles: Roles
    manifest: BundleManifest
    profile: ReferenceProfile
    scores: Scores
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]


def _check_target(target: Path, *, replace: bool) -> None:
    if target.exists() and not replace and (not target.is_dir() or any(target.iterdir())):
        raise ConflictError(
            f"{target} already exists",
            hint="choose another folder with -o, or give --replace",
        )


def _default_name(artifact: Artifact) -> str:
    if artifact.path is None:
        stem = artifact.reference.rpartition(":")[2]
    else:
        path = Path(artifact.path)
        stem = path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") or "model"


def _examine(converted: Converted, rows: Dataset, name: str) -> _Packing:
    """Run the model on the rows and find out what it is and how good."""
    signature, columns = converted.signature, converted.feature_columns
    feeds = bind(rows, signature, feature_columns=columns)
    outputs = run_batches(converted.runner, feeds, _BATCH_ROWS)
    numbers = {name: signature.output_numbers(name, array) for name, array in outputs.items()}
    roles = find_roles(numbers, rows.labels, task=converted.task, classes=converted.classes)
    manifest = BundleManifest(
        name=name,
        kind=converted.kind,
        model_file=converted.model_file,
        entry=converted.entry,
        task=roles.task,
        signature=signature,
        feature_columns=columns,
        label_column=rows.label_name,
        classes=roles.classes,
        prediction_output=roles.prediction_output,
        score_output=roles.score_output,
        needs_trust=converted.needs_trust,
    )
    scores = Scores(data_digest=rows.digest, label=rows.label_name)
    if rows.labels is not None and roles.task != "other":
        scores = evaluate(manifest, outputs, rows.labels, rows.digest)
    part = slice(0, _PROFILE_ROWS)
    profile = build_profile(
        flatten_inputs(manifest, {name: array[part] for name, array in feeds.items()}),
        flatten_outputs(manifest, {name: array[part] for name, array in outputs.items()}),
        rows.digest,
    )
    return _Packing(converted, rows, roles, manifest, profile, scores, feeds, outputs)


def _write(packing: _Packing, artifact: Artifact, target: Path, *, replace: bool) -> Bundle:
    from fairlead.backends.git import current_commit
    from fairlead.backends.mlflow_files import write_mlflow_files

    converted = packing.converted

    def fill(folder: Path) -> None:
        converted.fill(folder)
        if converted.keeps_mlmodel:
            shutil.rmtree(folder / "fairlead", ignore_errors=True)
            return
        write_mlflow_files(
            folder,
            packing.manifest,
            packing.rows,
            packing.feeds,
            packing.outputs,
            flavors=converted.flavors,
            packages=converted.packages,
            requirements=converted.requirements,
        )

    parent, runtime = None, RuntimeSettings()
    if artifact.format == "bundle":
        old = Bundle.open(artifact.path or "", verify=False)
        parent, runtime = old.digest, old.runtime
    return write_bundle(
        target,
        fill=fill,
        manifest=packing.manifest,
        profile=packing.profile,
        scores=packing.scores,
        runtime=runtime,
        provenance=Provenance(
            made_by=_SKILL,
            source=artifact.reference,
            source_digest=artifact.digest,
            parent_digest=parent,
            data_source=packing.rows.source,
            data_digest=packing.rows.digest,
            changes=converted.changes,
            git_commit=current_commit(Path.cwd()),
            environment=current_environment(),
            packages=dict(converted.packages),
        ),
        replace=replace,
    )


def _outcome(bundle: Bundle, packing: _Packing) -> Outcome[Bundle]:
    manifest, scores = packing.manifest, packing.scores
    primary = scores.primary
    quality = f", {primary.metric} {primary.value:.4g}" if primary else ""
    report = Report(
        skill=_SKILL,
        title=f"Pack {manifest.name}",
        summary=(
            f"{manifest.name} {bundle.version}: {manifest.task} model, "
            f"run by {_RUN_BY[manifest.kind]}{quality} on {packing.rows.n_rows} rows."
        ),
        measures=_measures(bundle, packing),
        findings=_findings(packing),
        tables=(_signature_table(manifest),),
        files={"bundle": str(bundle.path)},
        details={
            "bundle": str(bundle.path),
            "digest": bundle.digest,
            "version": bundle.version,
            "name": manifest.name,
            "task": manifest.task,
            "kind": manifest.kind,
            "classes": list(manifest.classes),
            "needs_trust": manifest.needs_trust,
            "changes": list(packing.converted.changes),
        },
    )
    return Outcome(bundle, report, _evidence(bundle, packing))


def _measures(bundle: Bundle, packing: _Packing) -> tuple[Measure, ...]:
    measures = [
        Measure(name=s.metric, value=s.value, unit="ratio", ci_low=s.ci_low, ci_high=s.ci_high)
        if s.metric not in {"rmse", "mae", "log_loss"}
        else Measure(name=s.metric, value=s.value, ci_low=s.ci_low, ci_high=s.ci_high)
        for s in packing.scores.scores
    ]
    measures.append(Measure(name="size", value=float(bundle.size_bytes), unit="bytes"))
    measures.append(Measure(name="rows", value=float(packing.rows.n_rows), unit="rows"))
    agreement = packing.converted.agreement
    if agreement is not None:
        measures.append(
            Measure(
                name="conversion_max_difference",
                value=agreement.max_difference,
                note=f"{agreement.label_flips} predictions differ on {agreement.n_rows} rows",
            )
        )
    return tuple(measures)


def _findings(packing: _Packing) -> tuple[Finding, ...]:
    notes = (*packing.converted.changes, *packing.converted.notes, *packing.roles.notes)
    findings = [Finding(level="info", text=_sentence(note)) for note in notes]
    if packing.rows.labels is None:
        findings.append(
            Finding(
                level="warning",
                text="There were no labels, so the bundle has no scores and no gate can hold it.",
                advice="name the column with the truth with --labels",
            )
        )
    else:
        text = "The scores hold only if none of these rows was used for training."
        findings.append(Finding(level="info", text=text))
    findings += _doubts(packing)
    return tuple(findings)


def _doubts(packing: _Packing) -> list[Finding]:
    found = []
    outputs = packing.outputs[packing.manifest.prediction_output]
    if outputs.dtype.kind == "f":
        bad = int((~_is_finite_row(outputs)).sum())
        if bad:
            text = f"{bad} of {len(outputs)} rows get a prediction that is not a finite number."
            advice = "fill missing values, or pack the pipeline that fills them with the model"
            found.append(Finding(level="warning", text=text, advice=advice))
    labels, primary = packing.rows.labels, packing.scores.primary
    if labels is None or primary is None or primary.metric != "accuracy":
        return found
    counts = sorted((labels.tolist().count(v) for v in set(labels.tolist())), reverse=True)
    if counts and primary.value < counts[0] / len(labels) - 0.05:
        text = (
            f"Accuracy {primary.value:.3f} is below always answering the most frequent class "
            f"({counts[0] / len(labels):.3f})."
        )
        advice = "check the order of the classes, the order of the columns, and the scaling"
        found.append(Finding(level="warning", text=text, advice=advice))
    return found


def _is_finite_row(array: Array) -> Array:
    return np.asarray(np.isfinite(array.reshape(len(array), -1).astype(np.float64)).all(axis=1))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _signature_table(manifest: BundleManifest) -> Table:
    rows = [("input", spec) for spec in manifest.signature.inputs]
    rows += [("output", spec) for spec in manifest.signature.outputs]
    meaning = {manifest.prediction_output: "prediction"}
    if manifest.score_output:
        meaning.setdefault(manifest.score_output, "scores")
    return Table(
        title="Signature",
        columns=("role", "name", "dtype", "shape", "meaning"),
        rows=tuple(
            (role, spec.name, spec.dtype, str(list(spec.shape)), meaning.get(spec.name, ""))
            for role, spec in rows
        ),
    )


def _evidence(bundle: Bundle, packing: _Packing) -> tuple[Evidence, ...]:
    labels = {"data_digest": packing.rows.digest, "bundle": bundle.name}
    found = [
        Evidence(
            metric=score.metric,
            value=score.value,
            unit="ratio" if score.metric not in {"rmse", "mae", "log_loss"} else "",
            method="held-back rows",
            subject=bundle.digest,
            sample_size=score.sample_size,
            ci_low=score.ci_low,
            ci_high=score.ci_high,
            skill=_SKILL,
            labels=labels,
        )
        for score in packing.scores.scores
    ]
    found.append(
        Evidence(
            metric="size_bytes",
            value=float(bundle.size_bytes),
            unit="bytes",
            method="files of the model",
            subject=bundle.digest,
            sample_size=1,
            skill=_SKILL,
            labels=labels,
        )
    )
    agreement = packing.converted.agreement
    if agreement is not None:
        found.append(
            Evidence(
                metric="conversion_max_difference",
                value=agreement.max_difference,
                unit="",
                method="original against converted model on the same rows",
                subject=bundle.digest,
                sample_size=agreement.n_rows,
                skill=_SKILL,
                labels={**labels, "label_flips": str(agreement.label_flips)},
            )
        )
    return tuple(found)
