"""Answers that were given before, kept by the content of what was asked; bounded by bytes.

A key is the digest of a bundle and of the bytes of all inputs, so a new version never answers
with the old one's outputs, and equal inputs meet whatever the order or encoding they came in.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from fairlead.core.ports import Array, Feeds

__all__ = ["ResponseCache", "content_key"]

_ENTRY_BYTES = 512
"""What an entry costs beside its arrays: key, dictionary, array headers."""
_TEXT_BYTES = 64


def content_key(bundle_digest: str, feeds: Feeds) -> bytes:
    """Return 16 bytes that tell a bundle and the content of its inputs.

    Args:
        bundle_digest: Digest of the bundle that answers.
        feeds: Validated inputs, in the dtypes of the signature.
    """
    digest = hashlib.blake2b(bundle_digest.encode(), digest_size=16)
    for name in sorted(feeds):
        array = feeds[name]
        digest.update(f"\0{name}\0{array.dtype.str}{array.shape}\0".encode())
        if array.dtype.kind == "O":
            for value in array.ravel().tolist():
                raw = value if isinstance(value, bytes) else str(value).encode()
                digest.update(b"%d:" % len(raw))
                digest.update(raw)
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


class ResponseCache:
    """The least recently used answers leave first; lives in one event loop, so it has no lock.

    Attributes:
        size_bytes: What is held now.
        n_hits: Answers that were found.
        n_misses: Answers that were not.
    """

    def __init__(self, max_bytes: int) -> None:
        """Hold at most `max_bytes`; an answer larger than an eighth of that is not kept."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[dict[str, Array], int]] = OrderedDict()
        self.size_bytes = 0
        self.n_hits = 0
        self.n_misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> dict[str, Array] | None:
        """Return the outputs that were put under a key, or None."""
        found = self._entries.get(key)
        if found is None:
            self.n_misses += 1
            return None
        self.n_hits += 1
        self._entries.move_to_end(key)
        return dict(found[0])

    def put(self, key: bytes, outputs: Mapping[str, Array]) -> None:
        """Keep outputs; they are copied, for a slice would hold the whole batch in memory."""
        size = _ENTRY_BYTES + sum(_size(array) for array in outputs.values())
        if size > self._max_bytes // 8:
            return
        kept = {}
        for name, array in outputs.items():
            kept[name] = array.copy()
            kept[name].flags.writeable = False
        old = self._entries.pop(key, None)
        if old is not None:
            self.size_bytes -= old[1]
        self._entries[key] = (kept, size)
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.size_bytes -= freed


def _size(array: Array) -> int:
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(_TEXT_BYTES + len(str(value)) for value in array.ravel().tolist())
