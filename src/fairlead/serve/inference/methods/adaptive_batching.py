"""Adaptive batching: what has arrived by the time the model is free runs together.

Clipper (Crankshaw et al., NSDI 2017) adapts the size of a batch to a latency goal; here the load
itself adapts it: while one batch runs the next one gathers, and a lone request never waits.
"""

from __future__ import annotations

from collections import deque

from fairlead.serve.inference.methods.queue import Waiting

__all__ = ["take_compatible"]


def take_compatible(waiting: deque[Waiting], max_rows: int) -> list[Waiting]:
    """Take the oldest request and those behind it that fit into one batch with it.

    Requests of other shapes keep their place in the queue.
    """
    first = waiting.popleft()
    batch = [first]
    if first.key is None:
        return batch
    rows = first.n_rows
    passed: list[Waiting] = []
    while waiting and rows < max_rows:
        other = waiting.popleft()
        if other.key == first.key and rows + other.n_rows <= max_rows:
            batch.append(other)
            rows += other.n_rows
        else:
            passed.append(other)
    waiting.extendleft(reversed(passed))
    return batch
