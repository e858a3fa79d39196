"""What a text says as a whole: a small transformer that reads the words in their order.

Its weights are those of a public sentence encoder (MiniLM, Wang et al., 2020) with the upper
layers fitted to the router's own utterances by `benchmarks/router/encoder.py`. They ship as 8-bit
integers with one scale per row; the arithmetic is numpy's, so nothing else need be installed.
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
from threadpoolctl import ThreadpoolController

from fairlead.router.wordpiece import pieces_of

__all__ = ["Encoder", "Heard", "hear", "load_encoder"]

Floats = NDArray[np.float32]

_HEADS: Final = 12
_TINY: Final = np.float32(1e-12)
_KEPT_ANSWERS: Final = 4096
_GELU: Final = np.float32(math.sqrt(2 / math.pi))
_CUBE: Final = np.float32(0.044715)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: attention, then two dense matrices; width d, inner width f.

    Matrices are stored so that `x @ matrix` applies them.
    """

    mix: Floats
    """Queries, keys and values side by side, shape (d, 3 d)."""
    mix_bias: Floats
    join: Floats
    """Shape (d, d)."""
    join_bias: Floats
    widen: Floats
    """Shape (d, f)."""
    widen_bias: Floats
    narrow: Floats
    """Shape (f, d)."""
    narrow_bias: Floats
    norms: Floats
    """Gain and shift after attention, gain and shift at the end, shape (4, d)."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """The fitted numbers."""

    vocabulary: Mapping[str, int]
    pieces: NDArray[np.int8]
    """Shape (n_pieces, d)."""
    piece_scales: Floats
    """Shape (n_pieces,)."""
    places: Floats
    """What stands for each position, shape (MAX_PIECES, d)."""
    norms: Floats
    """Gain and shift of the input, shape (2, d)."""
    layers: tuple[Layer, ...]
    answers: tuple[str, ...]
    answer_weights: Floats
    """Shape (n_answers, d)."""
    answer_bias: Floats
    skills: tuple[str, ...]
    skill_weights: Floats
    skill_bias: Floats


@dataclass(frozen=True)
class Heard:
    """Log odds that the encoder gives, up to a constant for the answers."""

    answers: dict[str, float]
    skills: dict[str, float]


@lru_cache(maxsize=_KEPT_ANSWERS)
def hear(text: str) -> Heard:
    """Return what the encoder that ships thinks of a text.

    Args:
        text: The words as `surface_of` returns them.
    """
    encoder = load_encoder()
    # The matrices are small: more threads would only wait for one another.
    with _threads().limit(limits=1, user_api="blas"):
        meaning = _encoded(pieces_of(text, encoder.vocabulary), encoder)
    answers = encoder.answer_weights @ meaning + encoder.answer_bias
    skills = encoder.skill_weights @ meaning + encoder.skill_bias
    return Heard(
        dict(zip(encoder.answers, answers.tolist(), strict=True)),
        dict(zip(encoder.skills, skills.tolist(), strict=True)),
    )


def _encoded(pieces: list[int], encoder: Encoder) -> Floats:
    """Return the mean of the last layer over the pieces, shape (d,)."""
    values = encoder.pieces[pieces] * encoder.piece_scales[pieces, None]
    found = _normal(values + encoder.places[: len(pieces)], *encoder.norms)
    for layer in encoder.layers:
        found = _through(found, layer)
    mean: Floats = found.mean(0, dtype=np.float32)
    return mean


def _through(values: Floats, layer: Layer) -> Floats:
    """Apply one layer to the pieces of a text, shape (n, d) in and out."""
    size, width = values.shape
    mixed = (values @ layer.mix + layer.mix_bias).reshape(size, 3, _HEADS, width // _HEADS)
    asked, offered, told = (mixed[:, part].transpose(1, 0, 2) for part in range(3))
    near = asked @ offered.transpose(0, 2, 1) * np.float32(1 / math.sqrt(width // _HEADS))
    near = np.exp(near - near.max(-1, keepdims=True))
    near /= near.sum(-1, keepdims=True)
    met = (near @ told).transpose(1, 0, 2).reshape(size, width)
    values = _normal(values + met @ layer.join + layer.join_bias, *layer.norms[:2])
    inner = _gelu(values @ layer.widen + layer.widen_bias)
    return _normal(values + inner @ layer.narrow + layer.narrow_bias, *layer.norms[2:])


def _gelu(values: Floats) -> Floats:
    """Gaussian error linear unit in its tanh form (Hendrycks and Gimpel, 2016)."""
    inner = _GELU * (values + _CUBE * values * values * values)
    result: Floats = np.float32(0.5) * values * (1 + np.tanh(inner))
    return result


def _normal(values: Floats, gain: Floats, shift: Floats) -> Floats:
    centred = values - values.mean(-1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(-1, keepdims=True) + _TINY)
    result: Floats = centred / spread * gain + shift
    return result


@lru_cache(maxsize=1)
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


@lru_cache(maxsize=1)
def load_encoder() -> Encoder:
    """Read the encoder that ships with the package, once."""
    source = resources.files("fairlead.router") / "data" / "encoder.npz"
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        words = bytes(stored["words"]).decode().split("\n")
        return Encoder(
            vocabulary={word: at for at, word in enumerate(words)},
            pieces=stored["pieces"],
            piece_scales=stored["piece_scales"].astype(np.float32),
            places=stored["places"].astype(np.float32),
            norms=stored["norms"],
            layers=tuple(_layer(stored, at) for at in range(int(stored["n_layers"]))),
            answers=tuple(stored["answers"].tolist()),
            answer_weights=stored["answer_weights"],
            answer_bias=stored["answer_bias"],
            skills=tuple(stored["skills"].tolist()),
            skill_weights=stored["skill_weights"],
            skill_bias=stored["skill_bias"],
        )


def _layer(stored: Mapping[str, NDArray[np.float32]], number: int) -> Layer:
    def whole(name: str) -> Floats:
        rows = stored[f"{number}.{name}"].astype(np.float32)
        rows *= stored[f"{number}.{name}_scales"].astype(np.float32)[:, None]
        return rows.transpose()

    def vector(name: str) -> Floats:
        return stored[f"{number}.{name}"]

    return Layer(
        mix=whole("mix"),
        mix_bias=vector("mix_bias"),
        join=whole("join"),
        join_bias=vector("join_bias"),
        widen=whole("widen"),
        widen_bias=vector("widen_bias"),
        narrow=whole("narrow"),
        narrow_bias=vector("narrow_bias"),
        norms=vector("norms"),
    )
