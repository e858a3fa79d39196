"""Heads of requests that were parsed before: clients send the same one again and again.

A head is known only by all of its bytes, and only after the parser has accepted exactly these
bytes; so what is strict about the parser stays so. Nothing that depends on who asks is kept here.
"""

from __future__ import annotations

from fairlead.serve.inference.http.head import Head

__all__ = ["KnownHeads"]

_END = b"\r\n\r\n"
_MAX_HEADS = 256
_MAX_BYTES = 2048
_UNIQUE = frozenset({b"traceparent", b"x-request-id", b"idempotency-key"})
"""Fields that differ from request to request: heads with them are not worth their place."""


class KnownHeads:
    """A bounded set of heads by their bytes."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        """Know none."""
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head | None, int]:
        """Return the head that one whole request begins with, and where its body begins.

        None when the head is not known, or the bytes are not exactly one request.
        """
        end = data.find(_END, 0, _MAX_BYTES) + 4
        head = self._heads.get(data[:end])
        if head is None or len(data) - end != head.length:
            return None, 0
        return head, end

    def learn(self, data: bytes, head: Head) -> None:
        """Remember the head of a request that the parser took, whole, from these bytes."""
        end = data.find(_END, 0, _MAX_BYTES) + 4
        if end < 4 or len(data) - end != head.length:
            return
        if any(name in _UNIQUE for name, _ in head.headers):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[data[:end]] = head
