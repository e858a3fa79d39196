"""Cut, train, judge, and again: what all methods with a torch module have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fairlead.backends.converted import versions_of
from fairlead.backends.torch_material import TorchMaterial, module_outputs
from fairlead.backends.torch_models import module_to_onnx
from fairlead.backends.torch_structure import count_work, restore_structure, structure_of
from fairlead.backends.torch_training import Checkpoints, Trained, TrainingPlan, train
from fairlead.core.errors import ConfigError, ModelError
from fairlead.core.report import Measure, Table
from fairlead.optimize.compression.bench import Bench, Compressed, Found

__all__ = ["Cut", "in_stages", "material_of", "plan_of", "score_of", "trained_version"]

_NOTE = "trained {epochs} epochs after the cut, drop {drop:.4g} on the search rows"


@dataclass
class Cut:
    """One stage: what is cut next.

    Attributes:
        name: Words for the report.
        apply: Cuts a module in place; returns what it thinned out, for `structure_of`.
        after_step: Made from the cut module: called after every step of training.
        is_asked: Whether the cut itself is what was asked for, gain or none.
        notes: What a reader should know.
    """

    name: str
    apply: Callable[[Any], Sequence[tuple[str, str, list[int]]]] = field(repr=False)
    after_step: Callable[[Any], Callable[[], None]] | None = field(default=None, repr=False)
    is_asked: bool = False
    notes: tuple[str, ...] = ()


def material_of(bench: Bench, method: str) -> TorchMaterial:
    """Return the user's module and data.

    Raises:
        ConfigError: They were not given.
    """
    if bench.training is None:
        raise ConfigError(
            f"{method} changes a torch module and trains it, and none was given",
            hint="name one with --model-factory module:function and --train-data, or use "
            "low-rank, tree-selection or distillation",
        )
    return bench.training


def plan_of(bench: Bench, **changes: Any) -> TrainingPlan:  # noqa: ANN401
    """Return how to train, from the settings."""
    config = bench.config
    values: dict[str, Any] = {
        "epochs": config.epochs,
        "patience": config.patience,
        "learning_rate": config.learning_rate,
        "temperature": config.temperature,
        "distil_weight": config.distil_weight,
        "feature_weight": config.feature_weight,
        "seed": config.seed,
        "checkpoint_every": config.checkpoint_every,
    }
    return TrainingPlan(**{**values, **changes})


def score_of(bench: Bench, material: TorchMaterial) -> Callable[[Any], float]:
    """Return what says the drop of a module on the search rows."""
    names = [spec.name for spec in bench.bundle.signature.outputs]

    def score(module: Any) -> float:  # noqa: ANN401 (untyped library)
        answers = module_outputs(module, bench.feeds, names, material.device)
        return bench.drop_between(answers).value

    return score


def in_stages(bench: Bench, method: str, cuts: Sequence[Cut], *, assistants: bool = False) -> Found:
    """Make one cut after the other, train after each, and stop where the budget breaks.

    Args:
        bench: The bench.
        method: Id of the method.
        cuts: The stages, the gentlest first.
        assistants: Whether every stage learns from the one before instead of the original
            (teacher assistants; Mirzadeh et al., AAAI 2020).

    Raises:
        ConfigError: No module was given.
        ModelError: The module cannot be cut or exported at all.
    """
    material = material_of(bench, method)
    keeper = None if material.checkpoints is None else Checkpoints(material.checkpoints)
    module, teacher = material.copy(), material.copy()
    ladder: list[Compressed] = []
    thinned: list[tuple[str, str, list[int]]] = []
    work = count_work(module, material.example())
    for number, cut in zip(count(1), cuts, strict=False):
        stage = f"{method}-{number}"
        saved = None if keeper is None else keeper.load(stage)
        try:
            if saved is None:
                thinned += cut.apply(module)
            else:
                module = material.copy()
                restore_structure(module, saved["structure"], saved["state"])
                thinned = _thinned(saved["structure"])
        except ModelError as exc:
            if not ladder and number == 1:
                return Found(method, reason=exc.message, advice=exc.hint)
            break
        trained = train(
            module,
            material,
            plan_of(bench),
            teacher=teacher,
            score=score_of(bench, material),
            stage=stage,
            structure=structure_of(module, thinned),
            checkpoints=keeper,
            after_step=(lambda: None) if cut.after_step is None else cut.after_step(module),
            progress=bench.progress,
        )
        version = trained_version(bench, method, cut, module, trained, work)
        if not bench.is_good(version.model, method):
            break
        ladder.insert(0, version)
        if assistants:
            teacher = _copied(module)
    return Found(method, tuple(ladder))


def _thinned(structure: str) -> list[tuple[str, str, list[int]]]:
    import json

    return [(kind, path, kept) for kind, path, kept in json.loads(structure)["cuts"]]


def _copied(module: Any) -> Any:  # noqa: ANN401
    import copy

    return copy.deepcopy(module)


def trained_version(
    bench: Bench,
    method: str,
    cut: Cut,
    module: Any,  # noqa: ANN401
    trained: Trained,
    before: tuple[int, int],
    details: Mapping[str, Any] | None = None,
) -> Compressed:
    """Export a trained module and say what it is.

    Raises:
        ModelError: It cannot be exported.
    """
    material = material_of(bench, method)
    outputs = [spec.name for spec in bench.bundle.signature.outputs]
    few = {name: array[:4] for name, array in bench.feeds.items()}
    model = module_to_onnx(module, few, outputs)
    after = count_work(module, material.example())
    return Compressed(
        method=method,
        change=f"{method} ({cut.name})",
        model=model,
        measures=(
            Measure(name="multiplications", value=after[0], unit="count", baseline=before[0]),
            Measure(name="parameters", value=after[1], unit="count", baseline=before[1]),
            Measure(name="epochs", value=trained.epochs, unit="count"),
        ),
        tables=(_losses(trained),),
        details={
            "parameters": after[1],
            "multiplications": after[0],
            "epochs": trained.epochs,
            **(details or {}),
        },
        packages=versions_of("torch", "torch-pruning", "onnxscript"),
        is_asked=cut.is_asked,
        notes=(
            f"{cut.name}: " + _NOTE.format(epochs=trained.epochs, drop=trained.drop),
            *cut.notes,
            *(("training was given up: the loss became NaN again and again",)
              if trained.is_broken else ()),
        ),
    )  # fmt: skip


def _losses(trained: Trained) -> Table:
    rows = tuple((place + 1, loss) for place, loss in enumerate(trained.losses))
    return Table(title="Training", columns=("epoch", "mean loss"), rows=rows)
