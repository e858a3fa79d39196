"""What the operating system lets this process use: CPUs, and how often it was held back."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["throttled_ratio", "usable_cpus"]

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(limit: int | None = None, *, cgroup: Path = _CGROUP) -> int:
    """Return the CPUs this process may use: the affinity mask, the quota, and a limit.

    Args:
        limit: CPUs to plan for; None asks only the machine.
        cgroup: Where the kernel shows the control groups, version 1 or 2.

    Returns:
        At least 1; half a CPU of quota counts as one, one and a half as one.
    """
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    quota = _quota(cgroup)
    if quota is not None:
        found = min(found, int(quota))
    return max(1, min(found, limit or found))


def _quota(cgroup: Path) -> float | None:
    """Return the CPUs' worth of time that the control group allows, or None."""
    try:
        text = (cgroup / "cpu.max").read_text().split()
        quota, period = text[0], text[1]
    except (OSError, IndexError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def throttled_ratio(*, cgroup: Path = _CGROUP) -> float | None:
    """Return the share of scheduling periods in which the quota stopped us; None without one."""
    for path in (cgroup / "cpu.stat", cgroup / "cpu" / "cpu.stat"):
        try:
            lines = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        numbers = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
        periods = numbers.get("nr_periods", 0)
        if periods:
            return min(numbers.get("nr_throttled", 0) / periods, 1.0)
    return None
