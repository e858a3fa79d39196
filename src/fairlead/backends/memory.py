"""How much memory this process holds, and giving back what it does not use."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

__all__ = ["release_memory", "resident_bytes"]

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds now.

    Where the kernel does not say, the most that it ever held.
    """
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def release_memory() -> None:
    """Free what nobody refers to, and hand free memory back to the operating system."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # not the GNU C library
            return
