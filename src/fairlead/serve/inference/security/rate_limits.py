"""Token buckets: one per caller, exact in total however many workers a service has.

With several workers the buckets lie in memory that all of them map. A slot is changed under a
lock of the operating system on its bytes, which dies with its holder, so a worker that is killed
blocks nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from fairlead.serve.inference.anonymous_file import anonymous_file

__all__ = ["Buckets", "LocalBuckets", "SharedBuckets", "new_shared_file"]

_MAX_CALLERS = 10_000
_SLOT = struct.Struct("<16sdd")  # digest of the caller, tokens, time of the last change
_WAYS = 8
_SETS = 1024
_SET_BYTES = _WAYS * _SLOT.size
_FILE_BYTES = _SETS * _SET_BYTES


class Buckets(Protocol):
    """Counts the requests of callers."""

    def take(self, caller: str, rate_rps: float, burst: float) -> float:
        """Take one token; return 0.0, or the seconds until there is one.

        Args:
            caller: Who asks.
            rate_rps: Tokens that come back per second.
            burst: Most tokens that there can be.
        """


def _filled(tokens: float, elapsed_s: float, rate_rps: float, burst: float) -> float:
    return min(burst, tokens + max(0.0, elapsed_s) * rate_rps)


class LocalBuckets:
    """Buckets of one process; the callers that asked longest ago are forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with full buckets."""
        self._clock = clock
        self._found: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str, rate_rps: float, burst: float) -> float:
        """See `Buckets.take`."""
        with self._lock:
            now = self._clock()
            tokens, since = self._found.pop(caller, (burst, now))
            tokens = _filled(tokens, now - since, rate_rps, burst)
            wait_s = 0.0 if tokens >= 1 else (1 - tokens) / rate_rps
            self._found[caller] = (tokens - 1 if wait_s == 0 else tokens, now)
            if len(self._found) > _MAX_CALLERS:
                self._found.popitem(last=False)
        return wait_s


class SharedBuckets:
    """Buckets of all workers of a service, in a file that they inherit."""

    def __init__(self, descriptor: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Map the file that `new_shared_file` made.

        Args:
            descriptor: The file; it stays open for as long as the buckets are used.
            clock: Seconds that all workers agree on.
        """
        self._descriptor = descriptor
        self._clock = clock
        self._memory = mmap.mmap(descriptor, _FILE_BYTES)
        # Locks of the operating system are of the process, so threads need one of their own.
        self._lock = threading.Lock()

    def take(self, caller: str, rate_rps: float, burst: float) -> float:
        """See `Buckets.take`."""
        digest = hashlib.blake2b(caller.encode(), digest_size=16).digest()
        start = int.from_bytes(digest[:4], "little") % _SETS * _SET_BYTES
        with self._lock:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, _SET_BYTES, start)
            try:
                return self._take(digest, start, rate_rps, burst)
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, _SET_BYTES, start)

    def _take(self, digest: bytes, start: int, rate_rps: float, burst: float) -> float:
        now = self._clock()
        at, tokens, since = self._slot(digest, start, burst, now)
        tokens = _filled(tokens, now - since, rate_rps, burst)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / rate_rps
        _SLOT.pack_into(self._memory, at, digest, tokens - 1 if wait_s == 0 else tokens, now)
        return wait_s

    def _slot(
        self, digest: bytes, start: int, burst: float, now: float
    ) -> tuple[int, float, float]:
        """Return the caller's slot, or the one that was used longest ago, filled."""
        oldest, oldest_since = start, float("inf")
        for at in range(start, start + _SET_BYTES, _SLOT.size):
            owner, tokens, since = _SLOT.unpack_from(self._memory, at)
            if owner == digest:
                return at, tokens, since
            if since < oldest_since:
                oldest, oldest_since = at, since
        return oldest, burst, now


def new_shared_file() -> int:
    """Return a nameless file for `SharedBuckets`; workers inherit its descriptor."""
    return anonymous_file("fairlead-limits", bytes(_FILE_BYTES))
