"""Processes of the server: which there are, and what memory they hold."""

from __future__ import annotations

import re
import statistics
import time
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

__all__ = ["Growth", "Samples", "workers_of"]

_PSS = re.compile(r"^Pss:\s+(\d+)", re.MULTILINE)


class Growth(NamedTuple):
    """Memory of a process over the later half of a run.

    Attributes:
        pid: The process.
        role: `supervisor`, `worker` or `other`.
        start_mb: Median PSS in the first tenth of that half, in MB.
        end_mb: Median PSS in its last tenth, in MB.
        slope_mb_per_hour: Theil-Sen slope of PSS.
        minutes: Length of what was looked at.
    """

    pid: int
    role: str
    start_mb: float
    end_mb: float
    slope_mb_per_hour: float
    minutes: float

    @property
    def grew_mb(self) -> float:
        """How much the process grew by the slope, in MB."""
        return self.slope_mb_per_hour * self.minutes / 60


class Samples:
    """PSS of a process and all its descendants over time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._found: dict[int, list[tuple[float, float]]] = {}
        self._roles: dict[int, str] = {}

    def take(self) -> None:
        """Look once."""
        now = time.monotonic()
        for pid in (self._pid, *_descendants(self._pid)):
            try:
                kilobytes = int(_PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())[1])
            except (OSError, TypeError):
                continue  # It has just ended.
            self._found.setdefault(pid, []).append((now, kilobytes / 1024))
            self._roles.setdefault(pid, _role(self._pid, pid))

    def growths(self) -> list[Growth]:
        """Return the growth of every process that lived through the later half of the run."""
        moments = [at for series in self._found.values() for at, _ in series]
        if not moments:
            return []
        middle, end = (min(moments) + max(moments)) / 2, max(moments)
        found = []
        for pid, series in self._found.items():
            late = [item for item in series if item[0] >= middle]
            if len(late) >= 5 and series[0][0] <= middle and late[-1][0] >= end - 30:
                found.append(_growth(pid, self._roles[pid], late))
        return found

    def peak_mb(self) -> dict[str, float]:
        """Return the largest PSS of a process of each role, in MB."""
        peaks: dict[str, float] = {}
        for pid, series in self._found.items():
            role = self._roles[pid]
            peaks[role] = max(peaks.get(role, 0.0), *(size for _, size in series))
        return peaks


def _growth(pid: int, role: str, series: list[tuple[float, float]]) -> Growth:
    tenth = max(1, len(series) // 10)
    sparse = series[:: max(1, len(series) // 100)]
    slopes = [(b - a) / (u - t) for (t, a), (u, b) in combinations(sparse, 2)]
    return Growth(
        pid, role,
        statistics.median(size for _, size in series[:tenth]),
        statistics.median(size for _, size in series[-tenth:]),
        statistics.median(slopes) * 3600,
        (series[-1][0] - series[0][0]) / 60,
    )  # fmt: skip


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a supervisor, oldest first."""
    return sorted(
        (child for child in _descendants(pid) if b"inference.worker" in _command(child)),
        key=_started,
    )


def _role(top: int, pid: int) -> str:
    if pid == top:
        return "supervisor"
    return "worker" if b"inference.worker" in _command(pid) else "other"


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for task in tasks:
        try:
            children = [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
