"""When a client asks again: retries within a budget, and second requests for slow ones."""

from __future__ import annotations

import random
import threading
from collections import deque
from typing import Literal

from pydantic import Field

from fairlead.core.values import Value

__all__ = ["HedgePolicy", "LatencyWindow", "RetryBudget", "RetryPolicy"]

_RETRIED = frozenset({429, 502, 503})
_WINDOW = 200
_FEWEST = 20


class RetryPolicy(Value):
    """How often a request is sent again that failed for no fault of its own.

    Only what may be repeated is: a connection that was refused before anything was sent, and,
    for requests that change nothing, lost connections and the answers 429, 502 and 503.
    """

    attempts: int = Field(3, ge=1, le=20)
    """Most times one request is sent."""
    first_backoff_s: float = Field(0.05, ge=0, le=60)
    """Longest pause before the second attempt, in seconds; it doubles each time."""
    longest_backoff_s: float = Field(2.0, ge=0, le=600)
    """Longest pause before any attempt, in seconds; `Retry-After` may ask for more."""
    budget_ratio: float = Field(0.1, ge=0, le=1)
    """Retries and hedges per request over time, so that an outage is not made worse by them."""
    budget_reserve: float = Field(10.0, ge=0)
    """Retries that are free before the ratio counts, and the most that are saved up."""

    def backoff_s(self, attempt: int, retry_after_s: float, *, chance: float) -> float:
        """Return the pause after attempt number `attempt`, from 1, in seconds.

        Source: "full jitter", https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/

        Args:
            attempt: How many attempts were made.
            retry_after_s: What the server asked for, or 0.
            chance: A random number between 0 and 1.
        """
        longest = min(self.longest_backoff_s, self.first_backoff_s * 2.0 ** (attempt - 1))
        if retry_after_s:
            # Not before the server said, and not all clients in the same moment either.
            return retry_after_s + chance * longest
        return chance * longest

    def is_retried(self, status: int) -> bool:
        """Say whether an answer is worth another attempt."""
        return status in _RETRIED


class HedgePolicy(Value):
    """When a second request is sent for one that takes long; the first answer wins.

    Source: Dean and Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013.
    """

    after: float | Literal["p95"] = "p95"
    """Seconds to wait for the first request, or `p95`: as long as 95 % of the last answers took."""


class RetryBudget:
    """A bucket of tokens: each request puts in a part of one, each retry takes a whole one."""

    def __init__(self, policy: RetryPolicy) -> None:
        """Start with the reserve."""
        self._ratio = policy.budget_ratio
        self._most = policy.budget_reserve
        self._tokens = policy.budget_reserve
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Count one request."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._ratio)

    def take(self) -> bool:
        """Take a token; False when there is none, and no retry may be sent."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class LatencyWindow:
    """The latencies of the last answers."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_WINDOW)

    def add(self, seconds: float) -> None:
        """Remember one."""
        self._last.append(seconds)

    def hedge_after_s(self, policy: HedgePolicy | None) -> float | None:
        """Return how long to wait before a second request; None sends none."""
        if policy is None:
            return None
        if policy.after != "p95":
            return policy.after
        known = sorted(self._last)
        return known[int(0.95 * len(known))] if len(known) >= _FEWEST else None


def chance() -> float:
    """Return a random number between 0 and 1."""
    return random.random()  # noqa: S311 (spreads clients, guards nothing)
