"""One answer for several workers: their metrics summed, their outcomes in one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MergedMetrics", "MergedOutcomes"]

_SAME_IN_ALL = frozenset({"fairlead_traffic_weight", "process_max_fds"})
"""Gauges that say the same in every worker."""
_SMALLEST = frozenset({"process_start_time_seconds"})
_WORDS = frozenset({"arm", "version"})
"""What nearly all outcomes have in common."""
_CUMULATIVE = frozenset({"counter", "histogram", "summary"})


@dataclass
class _Family:
    """A metric of one name: its comment lines, its kind, and its samples in order."""

    head: list[str] = field(default_factory=list)
    kind: str = "untyped"
    samples: dict[str, float] = field(default_factory=dict)


class MergedMetrics:
    """Sums Prometheus texts of workers; what ended workers counted stays counted.

    Counters may not fall when a worker is replaced: Prometheus would take the whole rest for new.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._latest: dict[int, dict[str, _Family]] = {}
        self._ended: dict[str, _Family] = {}

    def render(
        self, texts: Mapping[int, str], gauges: Iterable[tuple[str, str, str, float]] = ()
    ) -> str:
        """Return one text.

        Args:
            texts: What each living worker says, by its place.
            gauges: Further metrics: name, kind, help and value.
        """
        for place, text in texts.items():
            self._latest[place] = _parsed(text)
        merged: dict[str, _Family] = {}
        for families in (self._ended, *self._latest.values()):
            _add(merged, families)
        for name, kind, text, value in gauges:
            head = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            merged[name] = _Family(head, kind, {name: value})
        return "".join(_written(merged.values()))

    def end(self, place: int) -> None:
        """Keep the counters of a worker that ended, as it last told them."""
        families = self._latest.pop(place, {})
        kept = {name: family for name, family in families.items() if family.kind in _CUMULATIVE}
        _add(self._ended, kept)


def _parsed(text: str) -> dict[str, _Family]:
    families: dict[str, _Family] = {}
    current = _Family()
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, *rest = line.split(" ", 3)
            current = families.setdefault(name, _Family())
            current.head.append(line)
            if word == "TYPE":
                current.kind = rest[0]
        elif line:
            where, _, value = line.rpartition(" ")
            current.samples[where] = float(value)
    return families


def _add(merged: dict[str, _Family], families: Mapping[str, _Family]) -> None:
    for name, family in families.items():
        target = merged.setdefault(name, _Family(list(family.head), family.kind))
        for where, value in family.samples.items():
            if where not in target.samples:
                target.samples[where] = value
            elif name in _SMALLEST:
                target.samples[where] = min(target.samples[where], value)
            elif name in _SAME_IN_ALL or name.endswith(("_info", "_created")):
                target.samples[where] = max(target.samples[where], value)
            else:
                target.samples[where] += value


def _written(families: Iterable[_Family]) -> Iterable[str]:
    for family in families:
        for line in family.head:
            yield f"{line}\n"
        for where, value in family.samples.items():
            yield f"{where} {value!r}\n"


class MergedOutcomes:
    """Outcomes of all workers under one sequence without gaps, from 1.

    Workers number their own; whoever asks makes the supervisor take what is new in each of them,
    put it in order of time and number it. A request costs nothing more than with one worker.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        """Remember up to `capacity` outcomes."""
        self._capacity = capacity
        self._kept: list[tuple[Any, ...]] = []
        self._names: tuple[str, ...] = ()
        self._first = 1
        self._cursors: dict[int, int] = {}
        self._words: dict[str, str] = {}

    def cursor(self, place: int) -> int:
        """Return the last number of a worker's own sequence that was taken."""
        return self._cursors.get(place, 0)

    def end(self, place: int) -> None:
        """Expect a fresh sequence from the worker that takes this place."""
        self._cursors.pop(place, None)

    def take(self, pages: Mapping[int, Mapping[str, Any]]) -> None:
        """Number what workers told.

        Args:
            pages: What each said about its outcomes after its cursor, as `OutcomeRing.read` does.
        """
        fresh: list[dict[str, Any]] = []
        missed = 0
        for place, page in pages.items():
            self._cursors[place] = int(page["next"])
            missed += int(page["missed"])
            fresh += page["outcomes"]
        if missed:
            # A worker forgot as many as this ring holds: what it holds is older than that.
            self._first += len(self._kept) + missed
            self._kept.clear()
        fresh.sort(key=lambda outcome: float(outcome["at"]))
        for outcome in fresh:
            # Each page brings words of its own; kept are few, and each of them once.
            for name in _WORDS & outcome.keys():
                outcome[name] = self._words.setdefault(outcome[name], outcome[name])
        if fresh:
            self._names = tuple(name for name in fresh[0] if name != "seq")
        # Values without their names: a third of the memory.
        self._kept += [tuple(outcome[name] for name in self._names) for outcome in fresh]
        excess = len(self._kept) - self._capacity
        if excess > 0:
            del self._kept[:excess]
            self._first += excess

    def read(self, after: int, limit: int) -> dict[str, Any]:
        """Return a page; see `OutcomeRing.read`."""
        start = max(after + 1, self._first)
        at = start - self._first
        found = self._kept[at : at + limit]
        return {
            "outcomes": [
                {"seq": seq, **dict(zip(self._names, values, strict=True))}
                for seq, values in enumerate(found, start)
            ],
            "next": start + len(found) - 1 if found else max(after, 0),
            "missed": max(0, start - max(after, 0) - 1),
        }
