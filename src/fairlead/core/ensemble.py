"""Ensembles: bundles and code whose outputs feed one another within one bundle.

    name = "sentiment"

    [[steps]]
    name = "tokenise"
    code = "tokeniser.py:Tokeniser"

    [[steps]]
    name = "encode"
    bundle = "encoder"

    [[steps]]
    name = "classify"
    bundle = "classifier"
    inputs = { x = "encode.embedding" }

    [outputs]
    label = "classify.label"

A source is `step.output` or `request.column`. An input without a source takes the output of that
name where exactly one earlier step gives it, and comes with the request otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from fairlead.core.errors import SignatureError, UsageError
from fairlead.core.signature import STRING, Signature, TensorSpec
from fairlead.core.values import Value, describe_validation_error

__all__ = [
    "REQUEST",
    "Combination",
    "EnsembleDraft",
    "EnsemblePlan",
    "Flow",
    "PlannedStep",
    "Sources",
    "StepDraft",
    "check_flow",
    "connect",
    "read_draft",
    "signature_of",
]

REQUEST = "request"
"""Name of the step that stands for the request itself."""

Combination = Literal["mean", "vote", "argmax"]
"""Weighted mean of arrays; label that most (weighted) steps gave; place of the largest score."""

_NAME = r"^[A-Za-z0-9_-]+$"


class StepDraft(Value):
    """One step as a person writes it: a bundle, code, or a combination of earlier outputs."""

    name: str = Field(pattern=_NAME)
    bundle: str | None = None
    """Directory of a bundle, relative to the file."""
    code: str | None = None
    """`file.py:name` or `module:name` of a class with `predict`, or of a function."""
    include: tuple[str, ...] = ()
    """Files that the code loads."""
    combine: Combination | None = None
    of: tuple[str, ...] = ()
    """Sources that are combined."""
    weights: tuple[float, ...] = ()
    """One weight per source; empty weighs all the same."""
    labels: tuple[str | int, ...] = ()
    """Labels that `argmax` chooses from; 0, 1, … when empty."""
    inputs: Mapping[str, str | tuple[str, ...]] = {}
    """Input → source, or sources that are put side by side as columns."""


class EnsembleDraft(Value):
    """An ensemble as a person writes it."""

    name: str | None = None
    steps: tuple[StepDraft, ...] = Field(min_length=1)
    outputs: Mapping[str, str] = {}
    """Output → source; empty gives everything that the last step gives."""


class PlannedStep(Value):
    """One step as it is run."""

    name: str
    folder: str | None = None
    """Folder of its bundle within the ensemble; None for a combination."""
    digest: str | None = None
    version: str | None = None
    source: str = ""
    """Where the bundle came from, as the person wrote it."""
    combine: Combination | None = None
    weights: tuple[float, ...] = ()
    labels: tuple[str | int, ...] = ()
    inputs: Mapping[str, tuple[str, ...]]
    """Input → sources; several are stacked as columns. A combination names its inputs 0, 1, …"""


class EnsemblePlan(Value):
    """An ensemble as it is run: steps in order, every source settled."""

    steps: tuple[PlannedStep, ...]
    outputs: Mapping[str, str]


Sources = dict[str, tuple[str, ...]]


def read_draft(path: Path) -> EnsembleDraft:
    """Read `ensemble.toml`.

    Raises:
        UsageError: It cannot be read, or says what no ensemble can mean.
    """
    try:
        draft = EnsembleDraft.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as exc:
        raise UsageError(
            f"{path} does not describe an ensemble: {describe_validation_error(exc)}",
            hint="give [[steps]] with name and bundle, code or combine",
        ) from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path} cannot be read: {exc}", hint="mend the file") from exc
    _check_names(draft, path)
    return draft


def _check_names(draft: EnsembleDraft, path: Path) -> None:
    seen = {REQUEST}
    for step in draft.steps:
        if step.name in seen:
            raise UsageError(
                f"{path} has two steps named `{step.name}`"
                if step.name != REQUEST
                else f"{path}: `{REQUEST}` stands for the request, not for a step",
                hint="give every step a name of its own",
            )
        seen.add(step.name)
        kinds = [step.bundle, step.code, step.combine]
        if sum(kind is not None for kind in kinds) != 1 or bool(step.of) != bool(step.combine):
            raise UsageError(
                f"step `{step.name}` of {path} needs exactly one of bundle, code, or combine "
                "with of",
                hint="see `fairlead pack --help`",
            )


@dataclass
class Flow:
    """What flows between steps while an ensemble is put together.

    Attributes:
        request: Inputs that come with the request.
        given: Step → output → what it holds.
    """

    request: dict[str, TensorSpec] = field(default_factory=dict)
    given: dict[str, dict[str, TensorSpec]] = field(default_factory=dict)

    def spec_of(self, source: str, wanted_by: str) -> TensorSpec:
        """Return what a source holds.

        Raises:
            SignatureError: There is no such step before this one, or no such output.
        """
        step, _, output = source.partition(".")
        if step == REQUEST and output in self.request:
            return self.request[output]
        if output not in self.given.get(step, {}):
            known = [f"{s}.{o}" for s, outputs in self.given.items() for o in outputs]
            raise SignatureError(
                f"`{wanted_by}` takes `{source}`, which no earlier step gives",
                hint=f"earlier steps give {', '.join(known) or 'nothing'}",
            )
        return self.given[step][output]


def connect(
    flow: Flow, step: StepDraft, inputs: tuple[TensorSpec, ...], features: tuple[str, ...] = ()
) -> Sources:
    """Settle where the inputs of a step come from, and check that they fit.

    Args:
        flow: What earlier steps give; inputs of the request are added to it.
        step: The step.
        inputs: What it takes.
        features: Columns that its single input is made of.

    Raises:
        SignatureError: A source does not exist or does not fit, or an input is ambiguous.
    """
    unknown = sorted(set(step.inputs) - {spec.name for spec in inputs})
    if unknown:
        raise SignatureError(
            f"step `{step.name}` has no input `{unknown[0]}`",
            hint=f"its inputs are {', '.join(spec.name for spec in inputs)}",
        )
    settled: Sources = {}
    for spec in inputs:
        named = step.inputs.get(spec.name)
        if named is None:
            sources = _found(flow, step, spec, features if len(inputs) == 1 else ())
        else:
            sources = (named,) if isinstance(named, str) else tuple(named)
        settled[spec.name] = sources
        for source in sources:
            if source.partition(".")[0] == REQUEST:
                _request(flow, step, source.partition(".")[2], spec, len(sources))
        _check_fit(flow, step, spec, sources)
    return settled


def _found(
    flow: Flow, step: StepDraft, spec: TensorSpec, features: tuple[str, ...]
) -> tuple[str, ...]:
    givers = [name for name, outputs in flow.given.items() if spec.name in outputs]
    if len(givers) > 1:
        raise SignatureError(
            f"input `{spec.name}` of step `{step.name}` is given by {', '.join(givers)}",
            hint=f'choose one: inputs = {{ {spec.name} = "{givers[-1]}.{spec.name}" }}',
        )
    if givers:
        return (f"{givers[0]}.{spec.name}",)
    for name, outputs in reversed(flow.given.items()):
        if features and all(feature in outputs for feature in features):
            return tuple(f"{name}.{feature}" for feature in features)
    return (f"{REQUEST}.{spec.name}",)


def _request(flow: Flow, step: StepDraft, name: str, spec: TensorSpec, n_sources: int) -> None:
    """Note that an input comes with the request; two steps may share one of the same kind."""
    shape = (-1, *spec.shape[1:]) if n_sources == 1 else (-1,)
    wanted = TensorSpec(name=name, dtype=spec.dtype, shape=shape)
    known = flow.request.setdefault(name, wanted)
    if known != wanted:
        raise SignatureError(
            f"step `{step.name}` takes {wanted} from the request, an earlier step {known}",
            hint="convert it in a step of code between them",
        )


def _check_fit(flow: Flow, step: StepDraft, spec: TensorSpec, sources: tuple[str, ...]) -> None:
    where = f"{step.name}.{spec.name}"
    for source in sources:
        given = flow.spec_of(source, where)
        shape = spec.shape if len(sources) == 1 else (-1,)
        if not (_is_castable(given.dtype, spec.dtype) and _do_shapes_fit(given.shape, shape)):
            wanted = spec if len(sources) == 1 else f"one {spec.dtype} per row"
            raise SignatureError(
                f"`{where}` takes {wanted}, but `{source}` gives {given}",
                hint="put a step of code between them that converts it",
            )
    width = spec.shape[1] if len(spec.shape) == 2 else -1
    if len(sources) > 1 and (len(spec.shape) != 2 or width not in (-1, len(sources))):
        raise SignatureError(
            f"`{where}` takes {spec}, but {len(sources)} columns are put side by side",
            hint="name as many sources as it has columns",
        )


def _is_castable(given: str, wanted: str) -> bool:
    if given == wanted:
        return True
    if STRING in (given, wanted) or "bfloat16" in (given, wanted):
        return False
    return "float" in wanted or "float" not in given


def _do_shapes_fit(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(given) != len(wanted):
        return False
    pairs = list(zip(given, wanted, strict=True))[1:]
    return all(-1 in pair or pair[0] == pair[1] for pair in pairs)


def check_flow(flow: Flow, outputs: Mapping[str, str], steps: tuple[str, ...]) -> dict[str, str]:
    """Settle the outputs of the whole ensemble.

    Args:
        flow: What the steps give.
        outputs: Output → source as written; empty takes everything the last step gives.
        steps: Names of the steps, in order.

    Raises:
        SignatureError: A source does not exist.
    """
    last = steps[-1]
    chosen = dict(outputs) or {name: f"{last}.{name}" for name in flow.given[last]}
    for name, source in chosen.items():
        flow.spec_of(source, f"output {name}")
    return chosen


def signature_of(flow: Flow, outputs: Mapping[str, str]) -> Signature:
    """Return what the whole ensemble takes and gives; the batch dimension is free."""
    given = tuple(_renamed(flow.spec_of(source, name), name) for name, source in outputs.items())
    return Signature(inputs=tuple(flow.request.values()), outputs=given)


def _renamed(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype=spec.dtype, shape=(-1, *spec.shape[1:]))
