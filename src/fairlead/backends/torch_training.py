"""Training of a smaller module: on labels, on a teacher's answers, on its features, or on all.

Every epoch may leave a checkpoint; after `kill -9` training goes on from the last one.
"""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.backends.torch_material import TorchMaterial, as_tensors
from fairlead.core.errors import ModelError
from fairlead.core.files import write_bytes
from fairlead.core.ports import Progress

__all__ = ["Checkpoints", "Trained", "TrainingPlan", "loss_of", "train"]

Untyped = Any
"""Something of torch, which has no types."""

_CLIP = 5.0
_MOST_FAILURES = 2


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        epochs: Most times that the data are seen.
        patience: Epochs without progress after which it stops.
        learning_rate: Largest step of Adam.
        temperature: How much the teacher's scores are softened.
        distil_weight: Share of the teacher in the loss, 0 to 1.
        feature_weight: Weight of the distance between features.
        seed: Seed of dropout and the like.
        checkpoint_every: Epochs between two checkpoints.
    """

    epochs: int
    patience: int
    learning_rate: float
    temperature: float = 4.0
    distil_weight: float = 0.9
    feature_weight: float = 0.0
    seed: int = 0
    checkpoint_every: int = 1


@dataclass(frozen=True)
class Trained:
    """How training went.

    Attributes:
        drop: Smallest drop of quality that was seen; the module is in that state.
        epochs: Epochs that were run.
        losses: Mean loss of every epoch.
        is_broken: Whether the loss became NaN or infinite until it was given up.
    """

    drop: float
    epochs: int
    losses: tuple[float, ...] = ()
    is_broken: bool = False


@dataclass
class _State:
    """Where training stands."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    best_state: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    failures: int = 0


class Checkpoints:
    """Files that training goes on from, one per stage, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        """Keep them in a folder."""
        self._folder = folder

    def load(self, stage: str) -> dict[str, Any] | None:
        """Return what was saved of a stage, or None; nothing but tensors and numbers is read."""
        torch = importlib.import_module("torch")
        path = self._folder / f"{stage}.pt"
        if not path.is_file():
            return None
        found: dict[str, Any] = torch.load(str(path), map_location="cpu", weights_only=True)
        return found

    def save(self, stage: str, content: Mapping[str, Any]) -> None:
        """Write a stage.

        Raises:
            WorkspaceError: It cannot be written.
        """
        torch = importlib.import_module("torch")
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        write_bytes(self._folder / f"{stage}.pt", buffer.getvalue(), mode=0o600)


def train(
    student: Untyped,
    material: TorchMaterial,
    plan: TrainingPlan,
    *,
    teacher: Any | None,  # noqa: ANN401
    score: Callable[[Any], float],
    stage: str,
    structure: str = "",
    checkpoints: Checkpoints | None = None,
    after_step: Callable[[], None] = lambda: None,
    progress: Progress,
) -> Trained:
    """Train a module in place until it stops getting better, and leave it in its best state.

    Args:
        student: The module.
        material: The training data.
        plan: How to train.
        teacher: A module whose answers it shall give; None for labels only.
        score: Module → drop of quality on rows that are not trained on; smaller is better.
        stage: Name of the checkpoint.
        structure: What rebuilds the student's shape; stored in the checkpoint.
        checkpoints: Where training goes on from and leaves its state; None for nowhere.
        after_step: Called after every step, for example to put zeros back.
        progress: Hears of every epoch.

    Raises:
        DataError: There are neither labels nor a teacher to learn from.
        ModelError: The user's loss failed.
        WorkspaceError: A checkpoint cannot be written.
    """
    torch = importlib.import_module("torch")
    torch.manual_seed(plan.seed)
    student.to(material.device)
    if teacher is not None:
        teacher.to(material.device).eval()
    optimizer = torch.optim.Adam(
        [p for p in student.parameters() if p.requires_grad], lr=plan.learning_rate
    )
    state = _resumed(student, optimizer, checkpoints, stage)
    if not state.best_state:
        state.best, state.best_state = _scored(score, student), _copy_state(student)
    progress.begin(f"train {stage}", plan.epochs)
    progress.advance(state.epoch)
    lesson = _Lesson(student, teacher, material, plan)
    while state.epoch < plan.epochs and state.epoch - state.best_epoch < plan.patience:
        if state.failures > _MOST_FAILURES:
            break
        _one_epoch(lesson, optimizer, state, after_step)
        _keep_best(student, score, state)
        progress.advance()
        if checkpoints is not None and state.epoch % plan.checkpoint_every == 0:
            checkpoints.save(stage, _content(student, optimizer, state, structure))
    student.load_state_dict(state.best_state)
    student.to("cpu").eval()
    return Trained(state.best, state.epoch, tuple(state.losses), state.failures > _MOST_FAILURES)


def _one_epoch(
    lesson: _Lesson,
    optimizer: Untyped,
    state: _State,
    after_step: Callable[[], None],
) -> None:
    """Run one epoch; when the loss is lost, go back to the best state with half the step."""
    torch = importlib.import_module("torch")
    plan, student = lesson.plan, lesson.student
    slow = 0.5 ** (state.failures)
    rate = plan.learning_rate * slow * 0.5 * (1 + math.cos(math.pi * state.epoch / plan.epochs))
    for group in optimizer.param_groups:
        group["lr"] = rate
    student.train()
    losses = []
    for inputs, targets in lesson.material.batches():
        loss = lesson.loss(inputs, targets)
        if not bool(torch.isfinite(loss)):
            state.failures += 1
            student.load_state_dict(state.best_state)
            optimizer.state.clear()
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
        optimizer.step()
        after_step()
        losses.append(float(loss.detach()))
    state.epoch += 1
    state.losses.append(sum(losses) / len(losses) if losses else math.nan)


def _keep_best(student: Any, score: Callable[[Any], float], state: _State) -> None:  # noqa: ANN401
    drop = _scored(score, student)
    # Of equals the later one counts: it has learnt longer.
    if drop <= state.best:
        if drop < state.best:
            state.best_epoch = state.epoch
        state.best, state.best_state = drop, _copy_state(student)


def _scored(score: Callable[[Any], float], student: Any) -> float:  # noqa: ANN401
    drop = score(student)
    return drop if math.isfinite(drop) else math.inf


def _copy_state(student: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}


def _content(student: Any, optimizer: Any, state: _State, structure: str) -> dict[str, Any]:  # noqa: ANN401
    return {
        "structure": structure,
        "state": _copy_state(student),
        "optimizer": optimizer.state_dict(),
        "best_state": state.best_state,
        "numbers": json.dumps(
            {
                "epoch": state.epoch,
                "best": state.best,
                "best_epoch": state.best_epoch,
                "losses": state.losses,
                "failures": state.failures,
            }
        ),
    }


def _resumed(
    student: Untyped,
    optimizer: Untyped,
    checkpoints: Checkpoints | None,
    stage: str,
) -> _State:
    """Go on from the checkpoint of a stage; its structure has been restored by the caller."""
    saved = None if checkpoints is None else checkpoints.load(stage)
    if saved is None or "numbers" not in saved:
        return _State()
    student.load_state_dict(saved["state"])
    optimizer.load_state_dict(saved["optimizer"])
    return _State(best_state=saved["best_state"], **json.loads(saved["numbers"]))


def loss_of(
    material: TorchMaterial,
    inputs: tuple[Any, ...],
    targets: Untyped,
    module: Untyped,
) -> Any:  # noqa: ANN401
    """Return the loss of a module on labels; without labels, the size of its answers."""
    answer = as_tensors(module(*(tensor.to(material.device) for tensor in inputs)))[0]
    if targets is None:
        return answer.float().pow(2).mean()
    return _hard_loss(material, answer, targets.to(material.device))


def _hard_loss(material: TorchMaterial, answer: Any, targets: Any) -> Any:  # noqa: ANN401
    functional = importlib.import_module("torch.nn.functional")
    if material.loss is not None:
        try:
            return material.loss(answer, targets)
        except Exception as exc:
            raise ModelError(
                f"the loss failed: {type(exc).__name__}: {exc}".splitlines()[0],
                hint="it is called as loss(outputs, targets) with tensors and gives one number",
            ) from exc
    if material.task == "classification" and answer.ndim == 2 and answer.shape[1] > 1:
        return functional.cross_entropy(_logits(answer), targets.long().reshape(-1))
    return functional.mse_loss(answer.reshape(-1).float(), targets.reshape(-1).float())


def _logits(answer: Any) -> Any:  # noqa: ANN401 (untyped library)
    """Return scores as logits: probabilities have passed a softmax already."""
    torch = importlib.import_module("torch")
    with torch.no_grad():
        is_share = bool((answer >= 0).all()) and bool(
            torch.allclose(answer.sum(dim=1), torch.ones_like(answer[:, 0]), atol=1e-3)
        )
    return torch.log(answer.clamp_min(1e-8)) if is_share else answer


class _Lesson:
    """Computes the loss of a batch."""

    def __init__(
        self,
        student: Untyped,
        teacher: Untyped,
        material: TorchMaterial,
        plan: TrainingPlan,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.material, self.plan = material, plan
        self._pairs = (
            _feature_pairs(student, teacher) if teacher is not None and plan.feature_weight else []
        )

    def loss(self, inputs: tuple[Any, ...], targets: Any) -> Any:  # noqa: ANN401
        """Return the loss of one batch, a tensor of one number."""
        device, plan = self.material.device, self.plan
        moved = tuple(tensor.to(device) for tensor in inputs)
        with ExitStack() as stack:
            seen = [_watch(stack, pair) for pair in self._pairs]
            answers = as_tensors(self.student(*moved))
            taught = self._teach(moved)
        share = plan.distil_weight if taught is not None else 0.0
        if targets is None:
            share = 1.0 if taught is not None else 0.0
        total: Any = 0.0
        if taught is not None and share > 0:
            total = total + share * self._soft(answers, taught)
        if targets is not None and share < 1:
            total = total + (1 - share) * _hard_loss(self.material, answers[0], targets.to(device))
        for student, teacher in seen:
            total = total + plan.feature_weight * _feature_distance(student[0], teacher[0])
        return total

    def _teach(self, inputs: tuple[Any, ...]) -> list[Any] | None:
        torch = importlib.import_module("torch")
        if self.teacher is None:
            return None
        with torch.no_grad():
            return as_tensors(self.teacher(*inputs))

    def _soft(self, answers: list[Any], taught: list[Any]) -> Any:  # noqa: ANN401
        """Return the distance to the teacher: softened scores, or plain numbers."""
        functional = importlib.import_module("torch.nn.functional")
        answer, goal = answers[0], taught[0]
        heat = self.plan.temperature
        if self.material.task == "classification" and answer.ndim == 2 and answer.shape[1] > 1:
            soft = functional.log_softmax(_logits(answer) / heat, dim=1)
            wanted = functional.softmax(_logits(goal) / heat, dim=1)
            return functional.kl_div(soft, wanted, reduction="batchmean") * heat**2
        total: Any = 0.0
        for one, other in zip(answers, taught, strict=True):
            spread = other.float().var().clamp_min(1e-8)
            total = total + functional.mse_loss(one.float(), other.float()) / spread
        return total


def _feature_pairs(student: Any, teacher: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """Pair layers of the same name whose features can be compared: convolutions and matrices."""
    torch = importlib.import_module("torch")
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear, torch.nn.LayerNorm)
    known = dict(teacher.named_modules())
    return [
        (module, known[name])
        for name, module in student.named_modules()
        if isinstance(module, kinds) and isinstance(known.get(name), kinds)
    ]


def _watch(stack: ExitStack, pair: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Collect what two layers give while the block lasts."""
    found: tuple[list[Any], list[Any]] = ([], [])
    for module, place in zip(pair, found, strict=True):
        handle = module.register_forward_hook(lambda _m, _i, out, p=place: p.append(out))
        stack.callback(handle.remove)
    return found


def _feature_distance(student: Any, teacher: Any) -> Any:  # noqa: ANN401
    """Return how unlike the relations between rows are; widths may differ.

    Similarity-preserving distillation (Tung & Mori, ICCV 2019).
    """
    functional = importlib.import_module("torch.nn.functional")
    one = functional.normalize(_relations(student), dim=1)
    other = functional.normalize(_relations(teacher.detach()), dim=1)
    return (one - other).pow(2).mean() * len(one)


def _relations(features: Any) -> Any:  # noqa: ANN401
    flat = features.reshape(len(features), -1).float()
    return flat @ flat.T
