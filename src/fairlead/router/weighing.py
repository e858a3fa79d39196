"""How much speaks for a decision, and what came second."""

from __future__ import annotations

from collections import Counter

from fairlead.router.answers import RunnerUp
from fairlead.router.ordering import SHORT
from fairlead.router.scene import Scene
from fairlead.router.verdict import Verdict

__all__ = ["runner_up", "support"]


def support(scene: Scene, verdict: Verdict) -> float:
    """Return the share of the words that speak for the verdict and not against it."""
    votes = _votes(scene)
    speaks_for = sum(votes[skill] for skill in verdict.skills)
    speaks_for += sum(hit.concept in verdict.because for hit in scene.hits)
    against = sum(votes.values()) - sum(votes[skill] for skill in verdict.skills)
    return (speaks_for + 1) / (speaks_for + against + 2)


def runner_up(scene: Scene, verdict: Verdict) -> RunnerUp | None:
    """Return the best skill that the verdict leaves out, or None."""
    votes = _votes(scene)
    others = [item for item in votes if item not in verdict.skills]
    if not others:
        return None
    best = max(others, key=lambda item: (votes[item], item))
    return RunnerUp(answer=best, score=votes[best] / (sum(votes.values()) + 1))


def _votes(scene: Scene) -> Counter[str]:
    return Counter(
        SHORT[hit.concept.removeprefix("skill.")]
        for hit in scene.hits
        if hit.concept.startswith("skill.")
    )
