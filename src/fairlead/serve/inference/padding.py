"""Sequences of different lengths in one batch: padded to one length, and cut back afterwards.

Lengths are gathered in buckets, two per power of two, so that at most a third of a batch is
padding. Only for models that look away from the padding: the caller proves it with example rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import Signature

__all__ = ["Padding", "bucket_of"]


def bucket_of(length: int) -> int:
    """Return the longest sequence that shares a batch with one of this length.

    2, 3, 4, 6, 8, 12, 16, 24, 32, … : a bucket holds what is longer than the one before it.
    """
    if length <= 2:
        return 2
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power


class Padding:
    """Pads the second dimension of a model's inputs."""

    def __init__(self, values: Mapping[str, float], signature: Signature) -> None:
        """Pad with these values.

        Args:
            values: Input → what its padding holds.
            signature: What the model takes and gives.
        """
        self._values = dict(values)
        self._cut = {
            spec.name for spec in signature.outputs if len(spec.shape) > 1 and spec.shape[1] == -1
        }

    @classmethod
    def for_signature(cls, values: Mapping[str, float], signature: Signature) -> Padding | None:
        """Return the padding of a model, or None where it does not apply.

        It applies when every input has free rows, a free second dimension and nothing else that
        is free, and a value is given for each of them.
        """
        fits = values and all(
            len(spec.shape) > 1
            and spec.shape[:2] == (-1, -1)
            and -1 not in spec.shape[2:]
            and spec.name in values
            for spec in signature.inputs
        )
        return cls(values, signature) if fits else None

    def key(self, feeds: Feeds) -> Hashable:
        """Return what requests must share to run together."""
        lengths = {array.shape[1] for array in feeds.values()}
        if len(lengths) != 1 or 0 in lengths:
            return tuple(array.shape[1:] for array in feeds.values())
        return bucket_of(lengths.pop())

    def join(self, batch: Sequence[Feeds]) -> dict[str, Array]:
        """Return one batch of the requests' rows, every sequence as long as the longest."""
        return {name: self._joined(name, [feeds[name] for feeds in batch]) for name in batch[0]}

    def cut(self, share: dict[str, Array], feeds: Feeds, joined: Feeds) -> dict[str, Array]:
        """Return a request's share of the outputs without its padding."""
        length = next(iter(feeds.values())).shape[1]
        padded = next(iter(joined.values())).shape[1]
        if length == padded:
            return share
        return {
            name: array[:, :length] if name in self._cut and array.shape[1] == padded else array
            for name, array in share.items()
        }

    def _joined(self, name: str, parts: list[Array]) -> Array:
        length = max(part.shape[1] for part in parts)
        if all(part.shape[1] == length for part in parts):
            return np.concatenate(parts)
        first = parts[0]
        rows = sum(len(part) for part in parts)
        whole = np.full((rows, length, *first.shape[2:]), self._values[name], first.dtype)
        at = 0
        for part in parts:
            whole[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        return whole
