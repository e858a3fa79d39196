"""The rules: when to ask, and which skills a text names. Read from the top, the first holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fairlead.router.answers import SkillId
from fairlead.router.ordering import SHORT, in_order
from fairlead.router.scene import Scene
from fairlead.router.scope import SCOPE_RULES, consulted
from fairlead.router.verdict import Verdict, clarify, route

__all__ = ["deploy", "judge", "optimize_and_deploy", "ordered"]

_OPTIMISERS: Final = ("hardware", "quantization", "compression")
_PRUNED: Final = ("hardware", "compression", "quantization")
_CUTS: Final = ("prun", "distil", "low", "student", "teacher", "spars")
_LOOP: Final = frozenset({"monitoring", "automation", "rollout", "debugging"})
_WATCHING: Final = frozenset({"monitor", "observ"})


def judge(scene: Scene) -> Verdict:
    """Decide by the first rule that holds; when none does, ask for the concern."""
    for rule in (*SCOPE_RULES, *_RULES):
        verdict = rule(scene)
        if verdict:
            return verdict
    return clarify("unknown-concern", (), rule="nothing-matches")


def ordered(scene: Scene, names: Iterable[str]) -> tuple[SkillId, ...]:
    """Return skills in the order of work, as far as the text does not say otherwise."""
    given = set(names)
    places = {hit.concept: hit.first for hit in reversed(scene.hits)}
    usual = [name for name in _OPTIMISERS if name in given]
    if _prunes_first(scene, places):
        usual.sort(key=lambda name: _PRUNED.index(name))
    watches = places.get("skill.monitoring", 0) <= places.get("skill.automation", 0)
    watches = watches or scene.has("symptom.triggered")
    closes_loop = {"monitoring", "automation"} <= given <= _LOOP
    return in_order([*usual, *sorted(given - set(usual))], after_drift=watches and closes_loop)


def _prunes_first(scene: Scene, places: Mapping[str, int]) -> bool:
    at = places.get("skill.compression", len(scene.reading.stems))
    named = scene.reading.stems[at : at + 1]
    return bool(named) and named[0].startswith(_CUTS) and at < places.get("skill.quantization", at)


def _route(scene: Scene, rule: str, names: tuple[str, ...], because: tuple[str, ...]) -> Verdict:
    return route(rule, ordered(scene, names), because, consult=consulted(scene, names))


def _named(scene: Scene) -> tuple[str, ...]:
    """Return the skills that the text names, and those that its verbs imply."""
    names = list(scene.skills)
    if scene.has("verb.deploy") and not {"serving", "rollout"} & set(names):
        names.append("serving")
    if _optimizes_model(scene) and not {"hardware", "quantization", "compression"} & set(names):
        names += ["hardware", "quantization"]
    return tuple(names)


def _optimizes_model(scene: Scene) -> bool:
    """Tell whether the model is to be optimised, and not the serving around it."""
    serving = {hit.first for hit in scene.hits if hit.concept == "skill.serving"}
    return any(
        hit.concept == "symptom.optimize" and not serving & {hit.last + 1, hit.last + 2}
        for hit in scene.hits
    )


def deploy_language_model(scene: Scene) -> Verdict | None:
    """Serving and watching a language model stay here; the rest is its specialist's."""
    if not scene.is_llm or not scene.has("verb.deploy") or scene.skills:
        return None
    return _route(scene, "deploy-llm", ("serving", "monitoring"), ("verb.deploy", "object.llm"))


def several_concerns(scene: Scene) -> Verdict | None:
    """Name every concern, in the order in which the work must happen."""
    names = _named(scene)
    if not scene.skills or len(names) < 2:
        return None
    because = tuple(hit.concept for hit in scene.hits if hit.concept.startswith("skill."))
    return _route(scene, "several-concerns", names, (*because, "verb.deploy", "symptom.optimize"))


def optimize_and_deploy(scene: Scene) -> Verdict | None:
    """Make the model fit first, then expose it."""
    if scene.skills or not scene.has("verb.deploy"):
        return None
    if not _optimizes_model(scene) and scene.facts.target != "edge":
        return None
    names = ("quantization", "serving") if not _optimizes_model(scene) else _named(scene)
    return _route(
        scene, "optimize-then-serve", names, ("verb.deploy", "symptom.optimize", "target.edge")
    )


def slow(scene: Scene) -> Verdict | None:
    """Slow is clear and still asked: which phase, then which part."""
    because = ("symptom.slow", "phase.inference", "symptom.performance")
    if not scene.has("symptom.slow") or scene.skills or scene.has("symptom.fast_enough"):
        return None
    if scene.facts.slow_phase != "inference":
        return clarify("speed-inference-or-training", because)
    return clarify("model-or-infrastructure", because)


def performance(scene: Scene) -> Verdict | None:
    """Performance is speed or accuracy; nobody can tell from the word."""
    if not scene.has("symptom.performance") or scene.skills:
        return None
    if scene.facts.performance == "accuracy":
        return _route(scene, "accuracy", ("monitoring",), ("symptom.accuracy",))
    return clarify("speed-or-accuracy", ("symptom.performance", "symptom.bad"))


def deploy(scene: Scene) -> Verdict | None:
    """Where the model runs decides what must be done before it is exposed."""
    if not scene.has("verb.deploy") or scene.skills:
        return None
    if scene.facts.target:
        because = ("verb.deploy", f"target.{scene.facts.target}")
        return _route(scene, f"deploy-{scene.facts.target}", ("serving",), because)
    return clarify("deployment-target", ("verb.deploy", "phase.trained", "phase.production"))


def mlops(scene: Scene) -> Verdict | None:
    """MLOps is tracking and automation; which one hurts is asked."""
    if scene.has("verb.mlops") and not scene.skills:
        return clarify("tracking-or-automation", ("verb.mlops",))
    return None


def watching(scene: Scene) -> Verdict | None:
    """Watching with no direction given: set it up, or find what is wrong."""
    if scene.skills != ("monitoring",) or scene.has("verb.setup", "symptom.failing"):
        return None
    if scene.has("symptom.bad", "symptom.accuracy"):
        return None
    words = {
        word
        for hit in scene.hits
        if hit.concept == "skill.monitoring"
        for word in scene.reading.stems[hit.first : hit.last + 1]
    }
    is_bare = all(word.startswith(tuple(_WATCHING)) for word in words)
    return clarify("proactive-or-reactive", ("skill.monitoring",)) if is_bare else None


def one_skill(scene: Scene) -> Verdict | None:
    """One skill is named by its own words."""
    if not scene.skills:
        return None
    return _route(scene, "named-skill", scene.skills, (f"skill.{scene.skills[0]}",))


def too_large(scene: Scene) -> Verdict | None:
    """A model that is too large gets fewer bits, then fewer weights."""
    if scene.has("symptom.large"):
        return _route(scene, "too-large", ("quantization", "compression"), ("symptom.large",))
    return None


def optimize(scene: Scene) -> Verdict | None:
    """Optimising inference asks where the time goes; optimising for a device does not."""
    if not scene.has("symptom.optimize"):
        return None
    because = ("symptom.optimize", "target.edge", "phase.inference")
    if scene.facts.target == "edge":
        return route("optimize-for-edge", in_order(("quantization", "hardware")), because)
    if scene.has("phase.inference"):
        return clarify("model-or-infrastructure", because)
    return _route(scene, "optimize-model", ("hardware", "quantization"), because)


def wrong_predictions(scene: Scene) -> Verdict | None:
    """Accuracy that falls is watched first: has the input moved?"""
    if scene.has("symptom.accuracy") and scene.has("symptom.bad", "phase.production"):
        return _route(scene, "accuracy", ("monitoring",), ("symptom.accuracy",))
    return None


def live_fault(scene: Scene) -> Verdict | None:
    """Something fails where it runs."""
    is_live = scene.has("phase.production", "phase.deployed", "phase.inference", "object.service")
    if scene.has("symptom.failing") and is_live:
        because = ("symptom.failing", "phase.production")
        return _route(scene, "live-fault", ("debugging",), because)
    return None


def cost(scene: Scene) -> Verdict | None:
    """A model that costs too much is made cheaper to run."""
    if scene.has("symptom.cost") and scene.has("object.model", "phase.inference"):
        return _route(scene, "cost", ("hardware", "quantization"), ("symptom.cost",))
    return None


def only_a_tool(scene: Scene) -> Verdict | None:
    """A tool speaks only when nothing else does, and then only of what it is about."""
    if scene.hits:
        return None
    homes = tuple(dict.fromkeys(tool.home for tool in scene.tools if tool.home in SHORT))
    return _route(scene, "only-a-tool", homes[:1], ()) if homes else None


_RULES: Final[tuple[Callable[[Scene], Verdict | None], ...]] = (
    deploy_language_model,
    optimize_and_deploy,
    several_concerns,
    slow,
    performance,
    watching,
    one_skill,
    deploy,
    mlops,
    too_large,
    optimize,
    wrong_predictions,
    live_fault,
    cost,
    only_a_tool,
)
