"""Ensembles on their way into a bundle: every step is copied, connected, checked and tried."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fairlead.backends.converted import Converted
from fairlead.backends.ensembles import PLAN_FILE, gathered
from fairlead.backends.mlflow_files import write_mlflow_files
from fairlead.backends.python_models import PYFUNC_FLAVOR, convert_python
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import (
    Bundle,
    BundleManifest,
    Provenance,
    RuntimeSettings,
    Scores,
    Task,
    copy_bundle,
    write_bundle,
)
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.ensemble import (
    REQUEST,
    EnsembleDraft,
    EnsemblePlan,
    Flow,
    PlannedStep,
    StepDraft,
    check_flow,
    connect,
    signature_of,
)
from fairlead.core.errors import FairleadError
from fairlead.core.evidence import current_environment
from fairlead.core.files import digest_bytes, user_path, write_json
from fairlead.core.ports import Feeds
from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.version import __version__
from fairlead.measure.combining import combine, combined_spec
from fairlead.measure.quality import run_batches

__all__ = ["STEPS_FOLDER", "convert_ensemble"]

STEPS_FOLDER = "steps"
"""Folder of an ensemble that holds the bundles of its steps."""

_TRIED_ROWS = 64


@dataclass
class _Assembly:
    """An ensemble that is being put together.

    Attributes:
        dataset: The rows it is tried on.
        work: Folder that becomes the model's part of the bundle.
        base: Folder that references are relative to.
        trust: Whether code in bundles may run.
        features: Columns that code takes which names none.
        flow: What flows between the steps.
        values: Source → what it held on the rows.
        steps: Settled so far.
        parts: Step → its bundle.
        columns: Columns of a single stacked input of the request.
    """

    dataset: Dataset
    work: Path
    base: Path
    trust: bool
    features: Sequence[str]
    flow: Flow = field(default_factory=Flow)
    values: dict[str, Array] = field(default_factory=dict)
    steps: list[PlannedStep] = field(default_factory=list)
    parts: dict[str, Bundle] = field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)


def convert_ensemble(
    draft: EnsembleDraft,
    dataset: Dataset,
    work: Path,
    *,
    base: Path,
    trust: bool = False,
    features: Sequence[str] = (),
) -> Converted:
    """Put bundles and code together into one model.

    Args:
        draft: What a person wrote.
        dataset: Rows that it is tried on.
        work: Empty folder.
        base: Folder that references are relative to.
        trust: Whether code in bundles may run; naming code in the draft is consent to run it.
        features: Columns that code takes which names none.

    Raises:
        SignatureError: Steps do not fit together.
        UntrustedError: A bundle would run code, and `trust` is off.
        NotFoundError: A bundle or a file of code does not exist.
        ModelError: A step fails on the rows.
        DataError: The rows lack a column.
    """
    rows = dataset.take(slice(0, _TRIED_ROWS))
    made = _Assembly(rows, work / "ensemble", base, trust, features)
    for step in draft.steps:
        if step.combine is not None:
            _add_combination(made, step)
        else:
            _add_part(made, step)
    outputs = check_flow(made.flow, draft.outputs, tuple(step.name for step in made.steps))
    plan = EnsemblePlan(steps=tuple(made.steps), outputs=outputs)
    write_json(made.work / PLAN_FILE, plan.model_dump(mode="json"))
    return replace(_converted(made, plan, work), name=draft.name)


def _converted(made: _Assembly, plan: EnsemblePlan, work: Path) -> Converted:
    signature = signature_of(made.flow, plan.outputs)
    needs_trust = any(part.manifest.needs_trust for part in made.parts.values())
    task, classes = _meaning(made, plan)
    columns = made.columns.get(signature.inputs[0].name, ()) if len(signature.inputs) == 1 else ()
    whole = _tried(made, signature, work)

    def fill(folder: Path) -> None:
        shutil.copytree(made.work, folder, dirs_exist_ok=True)

    packages: dict[str, str] = {}
    lines: dict[str, None] = {f"fairlead=={__version__}": None}
    for part in made.parts.values():
        packages |= part.provenance.packages
        lines |= dict.fromkeys(_requirements(part))
    return Converted(
        kind="ensemble",
        model_file=STEPS_FOLDER,
        fill=fill,
        runner=open_runner(whole, trust=True),
        feature_columns=columns,
        task=task,
        classes=classes or None,
        notes=tuple(_described(step) for step in plan.steps),
        packages=packages,
        requirements=tuple(lines),
        flavors=PYFUNC_FLAVOR,
        needs_trust=needs_trust,
    )


def _requirements(part: Bundle) -> list[str]:
    file = part.path / "requirements.txt"
    own = ("fairlead", "mlflow", "pandas", "numpy")
    lines = file.read_text().splitlines() if file.is_file() else []
    return [line for line in lines if line and line.split("=")[0] not in own]


def _described(step: PlannedStep) -> str:
    sources = ", ".join(" + ".join(names) for names in step.inputs.values())
    what = f"bundle {step.version}" if step.version else f"{step.combine}"
    return f"step {step.name}: {what}, from {sources}"


def _tried(made: _Assembly, signature: Signature, work: Path) -> Bundle:
    """Write the ensemble where it can be opened as it will be."""

    def fill(folder: Path) -> None:
        shutil.copytree(made.work, folder, dirs_exist_ok=True)

    return _write(work / "tried", fill, "tried", "ensemble", signature, STEPS_FOLDER)


def _meaning(made: _Assembly, plan: EnsemblePlan) -> tuple[Task | None, tuple[str | int, ...]]:
    """Return task and classes of the bundle whose prediction the ensemble gives."""
    for source in plan.outputs.values():
        step, _, output = source.partition(".")
        part = made.parts.get(step)
        if part is None or output not in (
            part.manifest.prediction_output,
            part.manifest.score_output,
        ):
            continue
        if part.manifest.task != "other":
            return part.manifest.task, part.manifest.classes
    return None, next((step.labels for step in plan.steps if step.labels), ())


def _add_combination(made: _Assembly, step: StepDraft) -> None:
    how = step.combine or "mean"
    specs = [made.flow.spec_of(source, step.name) for source in step.of]
    spec = combined_spec(step.name, how, specs, step.weights, step.labels)
    arrays = [made.values[source] for source in step.of]
    made.flow.given[step.name] = {spec.name: spec}
    made.values[f"{step.name}.{spec.name}"] = combine(how, arrays, step.weights, step.labels)
    made.steps.append(
        PlannedStep(
            name=step.name,
            combine=how,
            weights=step.weights,
            labels=step.labels,
            inputs={str(place): (source,) for place, source in enumerate(step.of)},
        )
    )


def _add_part(made: _Assembly, step: StepDraft) -> None:
    place = made.work / STEPS_FOLDER / step.name
    part = _copied(made, step, place) if step.bundle else _coded(made, step, place)
    made.parts[step.name] = part
    before = set(made.flow.request)
    sources = connect(made.flow, step, part.signature.inputs, part.manifest.feature_columns)
    for name in set(made.flow.request) - before:
        _bind_request(made, name, part)
    planned = PlannedStep(
        name=step.name,
        folder=f"{STEPS_FOLDER}/{step.name}",
        digest=part.digest,
        version=part.version,
        source=step.bundle or step.code or "",
        inputs=sources,
    )
    runner = open_runner(part, trust=made.trust or step.code is not None)
    try:
        outputs = run_batches(runner, gathered(planned, made.values))
    except FairleadError as exc:
        exc.message = f"step `{step.name}`: {exc.message}"
        raise
    finally:
        runner.close()
    made.steps.append(planned)
    made.flow.given[step.name] = {spec.name: spec for spec in part.signature.outputs}
    made.values.update({f"{step.name}.{name}": array for name, array in outputs.items()})


def _copied(made: _Assembly, step: StepDraft, place: Path) -> Bundle:
    return copy_bundle(Bundle.open(made.base / user_path(step.bundle or "")), place)


def _bind_request(made: _Assembly, name: str, part: Bundle) -> None:
    spec = made.flow.request[name]
    own = part.manifest.feature_columns if len(part.signature.inputs) == 1 else ()
    bound = bind(made.dataset, Signature(inputs=(spec,), outputs=()), feature_columns=own)
    made.values[f"{REQUEST}.{name}"] = bound[name]
    if name not in made.dataset.columns:
        made.columns[name] = own


def _coded(made: _Assembly, step: StepDraft, place: Path) -> Bundle:
    """Make a bundle of the code of one step."""
    rows, names, known = _seen_by(made, step)
    converted = convert_python(
        _located(step.code or "", made.base),
        rows,
        made.work.parent / f"code-{step.name}",
        features=names,
        include=[made.base / user_path(item) for item in step.include],
        known=known,
    )
    try:
        feeds = bind(rows, converted.signature, feature_columns=converted.feature_columns)
        outputs = run_batches(converted.runner, feeds)
    finally:
        converted.runner.close()

    def fill(folder: Path) -> None:
        converted.fill(folder)
        about = _manifest(step.name, "python", converted.signature, "code", converted.entry)
        _mlflow_files(folder, about, converted, rows, feeds, outputs)

    return _write(
        place, fill, step.name, "python", converted.signature, converted.model_file,
        entry=converted.entry, columns=converted.feature_columns, source=step.code or "",
        packages=converted.packages,
    )  # fmt: skip


def _mlflow_files(
    folder: Path,
    manifest: BundleManifest,
    converted: Converted,
    rows: Dataset,
    feeds: Feeds,
    outputs: Feeds,
) -> None:
    write_mlflow_files(
        folder,
        manifest,
        rows,
        feeds,
        outputs,
        flavors=converted.flavors,
        packages=converted.packages,
        requirements=converted.requirements,
    )


def _located(reference: str, base: Path) -> str:
    """Return a reference to code with the path of its file made absolute."""
    where, _, name = reference.rpartition(":")
    return f"{base / user_path(where)}:{name}" if where.endswith(".py") else reference


def _seen_by(
    made: _Assembly, step: StepDraft
) -> tuple[Dataset, Sequence[str], dict[str, TensorSpec]]:
    """Return the columns that a step of code may take, those it takes by default, and their kinds.

    By default that is what the step before gives, or the columns of the request.
    """
    columns: dict[str, Array] = dict(made.dataset.columns)
    known: dict[str, TensorSpec] = {}
    for owner, outputs in made.flow.given.items():
        for name, spec in outputs.items():
            columns[name] = made.values[f"{owner}.{name}"]
            known[name] = spec
    for name, source in step.inputs.items():
        if isinstance(source, str) and source in made.values:
            columns[name] = made.values[source]
            known[name] = made.flow.spec_of(source, step.name)
    if step.inputs:
        chosen: Sequence[str] = tuple(step.inputs)
    elif made.steps:
        chosen = tuple(made.flow.given[made.steps[-1].name])
    else:
        chosen = tuple(made.features)
    return Dataset(columns, source=made.dataset.source), chosen, known


def _manifest(
    name: str, kind: str, signature: Signature, model_file: str, entry: str | None
) -> BundleManifest:
    return BundleManifest.model_validate(
        {
            "name": name,
            "kind": kind,
            "model_file": model_file,
            "entry": entry,
            "task": "other",
            "signature": signature,
            "prediction_output": signature.outputs[0].name,
            "needs_trust": True,
        }
    )


def _write(
    place: Path,
    fill: Callable[[Path], None],
    name: str,
    kind: str,
    signature: Signature,
    model_file: str,
    *,
    entry: str | None = None,
    columns: tuple[str, ...] = (),
    source: str = "",
    packages: Mapping[str, str] | None = None,
) -> Bundle:
    about = _manifest(name, kind, signature, model_file, entry)
    return write_bundle(
        place,
        fill=fill,
        manifest=about.model_copy(update={"feature_columns": columns}),
        profile=ReferenceProfile(n_rows=0, columns=()),
        scores=Scores(),
        runtime=RuntimeSettings(),
        provenance=Provenance(
            made_by="pack",
            source=source,
            source_digest=digest_bytes(source.encode()),
            environment=current_environment(),
            packages=dict(packages or {}),
        ),
    )
