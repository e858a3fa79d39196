"""What words mean: vectors in which words of alike company lie close together.

They were learnt by `benchmarks/router/vectors.py` from public documentation, by counting which
words stand near each other (positive pointwise mutual information, factorised; Levy and Goldberg,
2014). A text about words that no training utterance holds is still placed near those it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIMENSIONS", "Vectors", "load_vectors", "meaning_of"]

DIMENSIONS: Final = 128
"""Length of every vector."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of all known words."""

    places: dict[str, int]
    """Row of each stem."""
    rows: NDArray[np.int8]
    """Shape (n_words, DIMENSIONS); every row has about the same length."""
    weights: NDArray[np.float32]
    """How much a word tells, shape (n_words,): rare words more than common ones."""


def meaning_of(counts: Mapping[str, int]) -> NDArray[np.float32]:
    """Return the weighted mean of the vectors of some stems, of length 1.

    Args:
        counts: How often each stem occurs; what is said ten times counts three times as much.

    Returns:
        Shape (DIMENSIONS,); all zero when no word is known.
    """
    vectors = load_vectors()
    known = sorted(
        (vectors.places[word], count) for word, count in counts.items() if word in vectors.places
    )
    places = [place for place, _ in known]
    often = np.array([1 + math.log(count) for _, count in known], dtype=np.float32)
    total = (often * vectors.weights[places]) @ vectors.rows[places].astype(np.float32)
    length = float(np.sqrt(total @ total)) or 1.0
    return (total / length).astype(np.float32)


@lru_cache(maxsize=1)
def load_vectors() -> Vectors:
    """Read the vectors that ship with the package, once."""
    source = resources.files("fairlead.router") / "data" / "vectors.npz"
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        words = str(stored["words"]).split("\n")
        return Vectors(
            places={word: at for at, word in enumerate(words)},
            rows=stored["rows"],
            weights=stored["weights"].astype(np.float32),
        )
