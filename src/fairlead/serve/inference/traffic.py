"""Which arm answers a request: at random by weight, changed while the server runs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import UsageError

__all__ = ["Traffic"]


class Traffic:
    """Draws the arm of each request independently, so that the arms see the same users."""

    def __init__(
        self, arms: Sequence[str], split: TrafficSplit, generator: random.Random | None = None
    ) -> None:
        """Start with a split.

        Args:
            arms: Names of the arms there are.
            split: The first shares.
            generator: Source of chance; a fresh one when None.

        Raises:
            UsageError: The split does not fit the arms.
        """
        self._known = tuple(arms)
        self._random = (generator or random.Random()).random  # noqa: S311 (no secret)
        self.set(split)

    @property
    def split(self) -> TrafficSplit:
        """The shares in force."""
        return self._split

    def set(self, split: TrafficSplit) -> None:
        """Put other shares in force from the next request on.

        Raises:
            UsageError: An arm is unknown, a share is negative, the shares do not add up to 1, or
                the shadow also answers.
        """
        self._check(split)
        answering = [(arm, weight) for arm, weight in split.weights.items() if weight > 0]
        self._split = split
        self._arms = [arm for arm, _ in answering]
        self._limits = list(itertools.accumulate(weight for _, weight in answering))

    def choose(self) -> str:
        """Return the arm that answers the next request."""
        if len(self._arms) == 1:
            return self._arms[0]
        point = self._random() * self._limits[-1]
        for arm, limit in zip(self._arms, self._limits, strict=True):
            if point < limit:
                return arm
        return self._arms[-1]

    def _check(self, split: TrafficSplit) -> None:
        named = [*split.weights, *([split.shadow] if split.shadow is not None else [])]
        unknown = sorted(set(named) - set(self._known))
        if unknown:
            raise UsageError(
                f"there is no arm `{unknown[0]}`", hint=f"the arms are {', '.join(self._known)}"
            )
        wrong = {a: w for a, w in split.weights.items() if not (math.isfinite(w) and w >= 0)}
        total = math.fsum(split.weights.values())
        if wrong or not math.isclose(total, 1.0, abs_tol=1e-6):
            raise UsageError(
                f"the weights {split.weights} add up to {total:g}, expected 1 and none negative",
                hint="give each arm its share, for example baseline 0.9 and candidate 0.1",
            )
        if split.shadow is not None and split.weights.get(split.shadow, 0) > 0:
            raise UsageError(
                f"`{split.shadow}` cannot both answer and be the shadow",
                hint="give the shadow the weight 0",
            )
