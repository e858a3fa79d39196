"""Request at a time: for models whose rows must not meet."""

from __future__ import annotations

from collections import deque

from fairlead.serve.inference.methods.queue import Waiting

__all__ = ["take_one"]


def take_one(waiting: deque[Waiting], max_rows: int) -> list[Waiting]:  # noqa: ARG001
    """Take the request that has waited longest."""
    return [waiting.popleft()]
