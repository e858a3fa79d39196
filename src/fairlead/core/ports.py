"""The edges of the domain: what backends and doors implement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fairlead.core.signature import Signature

__all__ = ["Array", "Feeds", "Outputs", "Progress", "Runner", "SilentProgress", "StreamingRunner"]

Array = NDArray[np.generic]
Feeds = Mapping[str, Array]


@runtime_checkable
class Runner(Protocol):
    """A loaded model that can be executed; safe to call from several threads."""

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes that `run` takes and gives."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the model on one batch.

        Args:
            feeds: One array per input of the signature.

        Returns:
            One array per output of the signature.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The model failed on this input.
        """

    def close(self) -> None:
        """Free what the model holds."""


class Outputs(dict[str, Array]):
    """Outputs by name that also tell where the time went.

    Attributes:
        parts_ms: Step → time that it ran, in milliseconds.
    """

    def __init__(self, outputs: Mapping[str, Array], parts_ms: Mapping[str, float]) -> None:
        super().__init__(outputs)
        self.parts_ms = dict(parts_ms)


@runtime_checkable
class StreamingRunner(Runner, Protocol):
    """A loaded model that may give its answer piece by piece."""

    @property
    def is_streaming(self) -> bool:
        """Whether it does; `stream` is for such models only."""

    def stream(self, feeds: Feeds) -> Iterator[dict[str, Array]]:
        """Execute the model on one batch and yield its answer in pieces.

        Each piece has the outputs of the signature that it adds to, first dimension the rows.
        `run` gives the same answer in one: text joined row by row, other arrays joined along
        their second dimension, and of outputs with one value per row the last.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The model failed, at the beginning or in the middle.
        """


class Progress(Protocol):
    """How long work tells people how far it is; a door decides what that looks like."""

    def begin(self, title: str, total: int | None = None) -> None:
        """Start a piece of work of `total` units (None: unknown)."""

    def advance(self, units: int = 1) -> None:
        """Say that `units` more are done."""

    def note(self, text: str) -> None:
        """Say one sentence."""


class SilentProgress:
    """Progress for callers who do not want to hear of it."""

    def begin(self, title: str, total: int | None = None) -> None:
        """Do nothing."""

    def advance(self, units: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


def first_dimension(feeds: Feeds | Sequence[Array]) -> int:
    """Return the number of rows of a batch: the first dimension of its first array."""
    arrays = list(feeds.values()) if isinstance(feeds, Mapping) else list(feeds)
    if not arrays or arrays[0].ndim == 0:
        return 1
    return int(arrays[0].shape[0])
