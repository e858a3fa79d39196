"""The learned part: how likely each answer is, from the words of a text.

A linear model over hashed features and the meaning of the words. It was trained by
`benchmarks/router/train.py`, ships as `data/scorer.npz` and needs nothing but numpy to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from fairlead.router.features import BUCKETS, features_of
from fairlead.router.scene import Scene

__all__ = ["LENGTH", "Scores", "Weights", "load_weights", "score", "weigh"]

Floats = NDArray[np.float32]

LENGTH = 1.7
"""Length of the hashed part of every feature vector; the weights were trained with it."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The trained numbers."""

    answers: tuple[str, ...]
    """What the rows of `answer_weights` stand for: skills, `?questions` and `!neighbours`."""
    skills: tuple[str, ...]
    """What the rows of `skill_weights` stand for."""
    answer_weights: Floats
    """Shape (n_answers, n_features)."""
    answer_bias: Floats
    """Shape (n_answers,)."""
    skill_weights: Floats
    """Shape (n_skills, n_features)."""
    skill_bias: Floats
    """Shape (n_skills,)."""
    rarity: Floats
    """How much a feature counts, shape (n_features,)."""


@dataclass(frozen=True)
class Scores:
    """What the scorer thinks of one text."""

    answers: dict[str, float]
    """Probability of each answer being the first; they sum to 1."""
    skills: dict[str, float]
    """Probability of each skill being part of the route, should it be a route."""

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """The answers with their probabilities, the likeliest first."""
        return sorted(self.answers.items(), key=lambda item: (-item[1], item[0]))


def weigh(scene: Scene, rarity: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the features of a text with their final values."""
    places, values = features_of(scene)
    scaled = values * rarity[places]
    hashed = scaled[places < BUCKETS]
    length = float(np.sqrt(hashed @ hashed)) or 1.0
    scaled[: len(hashed)] *= LENGTH / length
    return places, scaled.astype(np.float32)


def score(scene: Scene, weights: Weights | None = None) -> Scores:
    """Return how likely each answer is."""
    used = weights or load_weights()
    places, values = weigh(scene, used.rarity)
    logits = used.answer_weights[:, places] @ values + used.answer_bias
    spread = np.exp(logits - logits.max())
    first = spread / spread.sum()
    part = 1 / (1 + np.exp(-(used.skill_weights[:, places] @ values + used.skill_bias)))
    return Scores(
        dict(zip(used.answers, first.tolist(), strict=True)),
        dict(zip(used.skills, part.tolist(), strict=True)),
    )


@lru_cache(maxsize=1)
def load_weights() -> Weights:
    """Read the trained numbers that ship with the package, once."""
    source = resources.files("fairlead.router") / "data" / "scorer.npz"
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return Weights(
            answers=tuple(stored["answers"].tolist()),
            skills=tuple(stored["skills"].tolist()),
            answer_weights=_unpack(stored["answer_weights"], stored["answer_scale"]),
            answer_bias=stored["answer_bias"],
            skill_weights=_unpack(stored["skill_weights"], stored["skill_scale"]),
            skill_bias=stored["skill_bias"],
            rarity=stored["rarity"].astype(np.float32),
        )


def _unpack(packed: NDArray[np.int8], scale: Floats) -> Floats:
    return packed.astype(np.float32) * scale[:, None]
