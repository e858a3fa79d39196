"""Whose problem it is: the rules that hand a text over to a neighbour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fairlead.router.answers import NeighbourId
from fairlead.router.scene import Scene
from fairlead.router.verdict import Verdict, redirect

__all__ = ["SCOPE_RULES", "consulted"]

# Words of a skill that people also use while they train; they do not make it production work.
_ALSO_TRAINING: Final = frozenset({"hardware", "debugging", "compression", "tracking"})


def _is_production_work(scene: Scene) -> bool:
    return any(skill not in _ALSO_TRAINING for skill in scene.skills) or scene.has(
        "verb.deploy", "verb.mlops", "phase.production", "phase.deployed"
    )


def untrained(scene: Scene) -> Verdict | None:
    """A model that does not exist yet is trained first."""
    if scene.facts.phase != "untrained" or scene.has("phase.production", "phase.deployed"):
        return None
    if scene.has("neighbour.architecture"):
        return None
    return redirect("training-optimization", "not-trained-yet", ("phase.untrained",))


def architecture(scene: Scene) -> Verdict | None:
    """Which network to build is decided before production."""
    if scene.has("neighbour.architecture") and not _is_production_work(scene):
        return redirect("neural-architectures", "architecture", ("neighbour.architecture",))
    return None


def framework(scene: Scene) -> Verdict | None:
    """The training framework's internals are another trade."""
    if scene.has("neighbour.torch_internals") and not (
        _is_production_work(scene) or scene.has("phase.inference")
    ):
        return redirect("pytorch-engineering", "framework", ("neighbour.torch_internals",))
    return None


def training(scene: Scene) -> Verdict | None:
    """Training speed, convergence and tuning end before production begins."""
    decisive = ("neighbour.train_slow", "neighbour.train_quality")
    is_slow = scene.facts.slow_phase == "training"
    if not (is_slow or scene.has(*decisive)) or scene.has("phase.inference"):
        return None
    if _is_production_work(scene):
        return None
    return redirect("training-optimization", "training", (*decisive, "phase.training"))


def language_model(scene: Scene) -> Verdict | None:
    """What only language models have stays with their specialist."""
    if scene.has("neighbour.llm_only") and not (scene.skills or scene.has("verb.deploy")):
        return redirect("llm-specialist", "llm-only", ("neighbour.llm_only", "object.llm"))
    if scene.is_llm and not (scene.skills or scene.has("verb.deploy", "verb.mlops")):
        return redirect("llm-specialist", "llm-only", ("object.llm",))
    return None


def no_model(scene: Scene) -> Verdict | None:
    """Something else than a model is to be run."""
    is_about_ml = scene.has("object.model", "object.llm", "phase.inference", "verb.mlops")
    if scene.has("object.nonml") and not is_about_ml:
        return redirect("out-of-scope", "no-model", ("object.nonml",))
    return None


SCOPE_RULES: Final[tuple[Callable[[Scene], Verdict | None], ...]] = (
    untrained,
    architecture,
    framework,
    training,
    language_model,
    no_model,
)


def consulted(scene: Scene, skills: tuple[str, ...]) -> tuple[NeighbourId, ...]:
    """Return the neighbours who own a part of a problem that stays here."""
    found: list[NeighbourId] = []
    if scene.is_llm:
        found.append("llm-specialist")
    profiles = any(
        scene.reading.stems[hit.first].startswith("profil")
        for hit in scene.hits
        if hit.concept == "skill.debugging"
    )
    speeds_up = scene.has("verb.optimize", "symptom.optimize") and scene.has("symptom.performance")
    if profiles or (speeds_up and "serving" in skills):
        found.append("pytorch-engineering")
    return tuple(found)
