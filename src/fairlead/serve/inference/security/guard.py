"""The guard: admits a request or says why not, once per request, before the body is read."""

from __future__ import annotations

from fairlead.serve.inference.security.callers import ANYONE, Caller, GuardedRequest

__all__ = ["Guard"]


class Guard:
    """Admits requests; safe to call from several threads."""

    is_open = True
    """Whether inference needs no credentials: a hot path may skip `admit` for it."""

    def admit(self, request: GuardedRequest) -> Caller:
        """Return who asks.

        Raises:
            UnauthenticatedError: It shows no credentials, or some that do not hold (401).
            ForbiddenError: It lacks the right (403).
            RateLimitedError: It asks more often than it may (429, `retry_after_s`).
        """
        return ANYONE

    async def admit_soon(self, request: GuardedRequest) -> Caller:
        """Like `admit`, and wait where a token is signed by a key that must be fetched first."""
        return self.admit(request)

    def conclude(self, request: GuardedRequest, caller: Caller, status: int) -> None:
        """Tell how an admitted request ended, for the audit log; cheap where nothing is kept."""
