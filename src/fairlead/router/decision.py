"""Rules and scorer together: the rules where every word is understood, the scorer elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairlead.router.answers import NEIGHBOURS, QUESTIONS
from fairlead.router.encoder import Heard
from fairlead.router.ordering import SHORT, in_order
from fairlead.router.rules import deploy, judge, optimize_and_deploy, ordered
from fairlead.router.scene import Scene
from fairlead.router.scope import consulted
from fairlead.router.scorer import Scores, Weights, score
from fairlead.router.verdict import Verdict, clarify, redirect, route

__all__ = ["PART_OF_ROUTE", "Decision", "decide"]

_NAMES: Final = {skill: name for name, skill in SHORT.items()}
PART_OF_ROUTE: Final = 0.75
"""How likely a further skill must be: one that is not needed is work for nothing."""
_TOO_UNSURE: Final = 0.14
_HARDLY_HEARD: Final = 0.15
_ASKING: Final = 0.7
"""A question that was not needed costs the user a turn: it must be this much likelier."""
_ANSWERABLE: Final = 0.25
_SURE: Final = 0.5
_OPTIMISERS: Final = frozenset({"quantization", "compression", "hardware"})
_SMALLER: Final = in_order(("quantization", "compression"))
# Rules that read off words alone which skill is meant: they may mistake a passing remark.
_BY_WORDS: Final = frozenset({"named-skill", "several-concerns", "accuracy", "live-fault"})


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and how it came about."""

    verdict: Verdict
    scores: Scores
    by_rule: bool
    agreed: bool
    """Whether the rules alone and the scorer alone give the same answer."""
    understood: bool
    """Whether every word of the text is known to the lexicon."""
    words: int


def decide(scene: Scene, weights: Weights | None = None, heard: Heard | None = None) -> Decision:
    """Decide one text.

    Args:
        scene: The text.
        weights: Of the linear part of the scorer; None takes those that ship.
        heard: What an encoder makes of the text; None asks the one that ships.
    """
    scores = score(scene, weights, heard)
    ruled, likely = judge(scene), _by_score(scene, scores)
    binding = _is_binding(scene, ruled, scores)
    verdict = ruled if binding else _kept_in_bounds(scene, likely, scores)
    return Decision(
        verdict=verdict,
        scores=scores,
        by_rule=binding,
        agreed=_same(ruled, likely),
        understood=scene.is_understood,
        words=len(scene.reading.stems),
    )


def _is_binding(scene: Scene, ruled: Verdict, scores: Scores) -> bool:
    if not scene.is_understood:
        return False
    if ruled.rule == "nothing-matches":
        return False
    if ruled.rule not in _BY_WORDS:
        return True
    names = [_NAMES[skill] for skill in ruled.skills]
    return sum(scores.answers[name] for name in names) >= _HARDLY_HEARD


def _by_score(scene: Scene, scores: Scores) -> Verdict:
    best, belief = _best(scores)
    if belief < _TOO_UNSURE:
        return clarify("unknown-concern", (), rule="too-unsure")
    because = tuple(dict.fromkeys(hit.concept for hit in scene.hits))
    for question in QUESTIONS:
        if best == f"?{question}":
            return clarify(question, because, rule="scorer")
    for neighbour in NEIGHBOURS:
        if best == f"!{neighbour}":
            return redirect(neighbour, "scorer", because)
    names = [name for name, part in scores.skills.items() if part > PART_OF_ROUTE or name == best]
    return route("scorer", ordered(scene, names), because, consult=consulted(scene, tuple(names)))


def _best(scores: Scores) -> tuple[str, float]:
    """Return the likeliest answer, where a question has to be clearly likelier than an answer."""
    first, *rest = scores.ranked
    told = next((item for item in rest if not item[0].startswith("?")), first)
    is_close = first[0].startswith("?") and told[1] > max(first[1] * _ASKING, _ANSWERABLE)
    return told if is_close else first


def _kept_in_bounds(scene: Scene, heard: Verdict, scores: Scores) -> Verdict:
    """Do not ask where a model is to run if that was said; never change it for slowness alone."""
    if _is_too_large(scene, heard):
        return route("too-large", _SMALLER, heard.because, consult=heard.consult)
    if heard.question == "deployment-target" and scene.facts.target in scene.tool_facts:
        return optimize_and_deploy(scene) or deploy(scene) or heard
    names = {_NAMES[skill] for skill in heard.skills}
    if not names or not names <= _OPTIMISERS or scene.facts.slow_phase != "inference":
        return heard
    if _OPTIMISERS & set(scene.skills) or scene.has("symptom.large", "target.edge"):
        return heard
    if names == {"hardware"} and scores.answers["hardware"] > _SURE:
        return heard
    return clarify("model-or-infrastructure", ("symptom.slow", "phase.inference"))


def _is_too_large(scene: Scene, heard: Verdict) -> bool:
    """Tell whether something must get smaller and the text names no way to do it."""
    if not heard.skills or not set(heard.skills) <= set(_SMALLER):
        return False
    return scene.has("symptom.large", "symptom.memory") and not _OPTIMISERS & set(scene.skills)


def _same(one: Verdict, other: Verdict) -> bool:
    return (one.redirect_to, one.question, set(one.skills)) == (
        other.redirect_to,
        other.question,
        set(other.skills),
    )
