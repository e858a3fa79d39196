"""How much memory this process holds, and giving back what it does not use."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["peak_bytes", "release_memory", "release_program_text", "resident_bytes"]

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)
_SMAPS = Path("/proc/self/smaps")
_MADV_DONTNEED = 4
_OWN = ("Private_Dirty:", "Anonymous:", "Swap:")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)$")


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


def peak_bytes() -> int:
    """Return the most memory that this process, or a child that ended, ever held, in bytes."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(_own_peak(), found if sys.platform == "darwin" else found * 1024)


def _own_peak() -> int:
    """Return the peak since this program began: `getrusage` counts what started it as well."""
    try:
        return 1024 * int(_PEAK.findall(_STATUS.read_text())[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def release_memory() -> None:
    """Free what nobody refers to, and hand free memory back to the operating system."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # not the GNU C library
            return


def release_program_text() -> int:
    """Give back the pages of libraries that only starting up needed.

    Libraries map tens of megabytes of code and constants, and what is used once stays resident
    until the machine is short of memory. What is used again is read again from the kernel's file
    cache, page by page. Only mappings of files are touched that nothing may write to, and of
    which this process holds no page of its own.

    Returns:
        Bytes of the mappings that were given back; 0 where the kernel has no such call.
    """
    if sys.platform != "linux":
        return 0
    try:
        advise = ctypes.CDLL(None, use_errno=True).madvise
        mappings = list(_clean_parts(_SMAPS.read_text()))
    except (OSError, AttributeError):  # no procfs, or not the GNU C library
        return 0
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(
        end - start for start, end in mappings if not advise(start, end - start, _MADV_DONTNEED)
    )


def _clean_parts(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield where code and constants of libraries lie that hold no page of this process's own.

    A changed page may be in memory or swapped out; a library's relocated constants are such.
    """
    place: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if found := _MAPPING.match(line):
            if place is not None:
                yield place
            is_fixed = found[3] == "r-xp" or (found[3] == "r--p" and ".so" in found[4])
            is_fixed &= found[4].startswith("/")
            place = (int(found[1], 16), int(found[2], 16)) if is_fixed else None
        elif place is not None and line.startswith(_OWN) and line.split()[1] != "0":
            place = None
    if place is not None:
        yield place
