"""How often each version of each model answered, and when it did last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairlead.serve.inference.served import Observer, ServedRequest, ServedTogether

__all__ = ["Uses"]


@dataclass(slots=True)
class _Use:
    """How often a version answered, and when it did last."""

    n_requests: int = 0
    last_used: float = 0.0


class Uses:
    """Counts the requests that each version of each model took."""

    def __init__(self) -> None:
        """Start without any."""
        self._found: dict[str, dict[str, _Use]] = {}

    @property
    def n_requests(self) -> int:
        """Requests of all models, answered or failed."""
        return sum(use.n_requests for uses in self._found.values() for use in uses.values())

    def observer(self, model: str) -> Observer:
        """Return what hears of the requests of a model."""
        uses = self._found.setdefault(model, {})

        def note(version: str, count: int, at: float) -> None:
            use = uses.get(version)
            if use is None:
                use = uses[version] = _Use()
            use.n_requests += count
            use.last_used = at

        def observe(requests: Sequence[ServedRequest]) -> None:
            if isinstance(requests, ServedTogether):
                note(requests.arm.version, len(requests.ids), requests.at)
                return
            for served in requests:
                note(served.arm.version, 1, served.at)

        return observe

    def of(self, model: str, versions: Iterable[str]) -> tuple[int, float | None]:
        """Return how many requests some versions took, and when the last one ended, or None."""
        uses = self._found.get(model, {})
        found = [uses[version] for version in versions if version in uses]
        last = max((use.last_used for use in found), default=0.0)
        return sum(use.n_requests for use in found), last or None
