"""What happened: answers right and wrong, refusals, cut connections, and who is to blame."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

__all__ = ["Cut", "Ledger"]

_SHADOW_S = 1.5
"""A connection may be cut this long after its worker was killed, by a client that notices late."""
_KEPT = 20


class Cut(Exception):  # noqa: N818 (what happened to a connection)
    """The connection ended before the answer."""


@dataclass
class Ledger:
    """Counts of one run.

    Attributes:
        kills: When a worker was killed, in `time.perf_counter` seconds.
    """

    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    cut_by_kills: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    hangs: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kills: list[float] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _cuts: list[tuple[str, float, float, str]] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep an example of what went wrong; the first ones are enough."""
        if len(self.notes) < _KEPT:
            self.notes.append(text[:600])

    def status(self, kind: str, status: int | str, allowed: set[int | str], said: object) -> None:
        """Count an answer's status, and what nobody may answer."""
        self.statuses[kind][str(status)] += 1
        if status not in allowed:
            self.unexpected[kind] += 1
            self.note(f"unexpected {status} for {kind}: {said!r}")

    def cut(self, kind: str, started: float, said: str) -> None:
        """Count a request whose connection ended; who did it is settled at the end."""
        self._cuts.append((kind, started, time.perf_counter(), said))

    def settle(self) -> None:
        """Divide the cuts between killed workers and losses."""
        for kind, started, ended, said in self._cuts:
            if any(started - _SHADOW_S <= kill <= ended for kill in self.kills):
                self.cut_by_kills[kind] += 1
            else:
                self.lost[kind] += 1
                self.note(f"lost {kind} after {ended - started:.3f} s: {said}")
        self._cuts.clear()
