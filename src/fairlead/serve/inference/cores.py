"""How many CPU cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_cores"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(limit: int | None = None, *, quota_file: Path = _QUOTA) -> int:
    """Return the cores of the affinity mask, the container's quota and `limit`, the least of them.

    Args:
        limit: CPUs to plan for; None asks only the machine.
        quota_file: Where the kernel tells the container's quota: `quota period`, or `max`.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no quota is set, or this is no Linux
    return max(1, min(cores, limit or cores))
