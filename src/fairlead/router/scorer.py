"""The learned part: how likely each answer is, from the words of a text.

Two readers whose log odds are averaged: a linear model over hashed features and the meaning of the
words, and an encoder that reads them in their order. The linear model was trained by
`benchmarks/router/train.py` and ships as `data/scorer.npz`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fairlead.router.encoder import Heard, hear
from fairlead.router.features import BUCKETS, features_of
from fairlead.router.scene import Scene
from fairlead.router.surface import surface_of

__all__ = [
    "ASKING",
    "ENCODER_SHARE",
    "LENGTH",
    "OUTSIDE",
    "Logits",
    "Scores",
    "Weights",
    "load_weights",
    "logits_of",
    "score",
    "weigh",
]

Floats = NDArray[np.float32]

LENGTH = 1.7
"""Length of the hashed part of every feature vector; the weights were trained with it."""
ENCODER_SHARE: Final = 0.5
"""How much the encoder counts where both are heard."""
OUTSIDE: Final = 0.45
"""Log odds added to `out-of-scope` where words are left over: no corpus holds all that is asked."""
ASKING: Final = -0.65
"""Log odds added to every question there: people leave less open than the corpus, and a question
that was not needed costs a turn."""
_OUTSIDE: Final = "!out-of-scope"


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


@dataclass(frozen=True, eq=False)
class Logits:
    """Log odds of one text, before they are turned into probabilities."""

    answers: Floats
    """Up to a constant, shape (n_answers,)."""
    skills: Floats
    """Shape (n_skills,)."""
    share: float
    """How much the linear part counts in them, above 0 and at most 1."""


def logits_of(scene: Scene, weights: Weights, heard: Heard | None = None) -> Logits:
    """Return the log odds of each answer and of each skill.

    The linear part and the encoder are averaged. A text whose every word is in the lexicon is
    left to the linear part: the encoder is neither read nor asked for it.

    Args:
        scene: The text.
        weights: Of the linear part.
        heard: What an encoder makes of the text; None asks the one that ships.
    """
    places, values = weigh(scene, weights.rarity)
    answers = weights.answer_weights[:, places] @ values + weights.answer_bias
    skills = weights.skill_weights[:, places] @ values + weights.skill_bias
    if scene.is_understood:
        return Logits(answers, skills, 1.0)
    told = heard or hear(surface_of(scene))
    first = np.array([told.answers[name] for name in weights.answers], np.float32)
    parts = np.array([told.skills[name] for name in weights.skills], np.float32)
    own = 1 - ENCODER_SHARE
    answers = own * answers + ENCODER_SHARE * first
    answers += np.array([_leaning(name) for name in weights.answers], np.float32)
    return Logits(answers, own * skills + ENCODER_SHARE * parts, own)


def _leaning(answer: str) -> float:
    """Return the log odds by which an answer is likelier among real statements."""
    if answer == _OUTSIDE:
        return OUTSIDE
    return ASKING if answer.startswith("?") else 0.0


def score(scene: Scene, weights: Weights | None = None, heard: Heard | None = None) -> Scores:
    """Return how likely each answer is."""
    used = weights or load_weights()
    logits = logits_of(scene, used, heard)
    spread = np.exp(logits.answers - logits.answers.max())
    first = spread / spread.sum()
    part = 1 / (1 + np.exp(-logits.skills))
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
