"""Asks the guard about a call."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from fairlead.core.errors import UnauthenticatedError
from fairlead.serve.inference.grpc.call import Call
from fairlead.serve.inference.security.callers import Caller, GuardedRequest
from fairlead.serve.inference.security.endpoints import kind_of

if TYPE_CHECKING:
    from fairlead.serve.inference.security.guard import Guard
    from fairlead.serve.inference.service import Service

__all__ = ["Doorman"]


class Doorman:
    """Admits calls; without a guard inference is open, and administration needs the token."""

    def __init__(self, service: Service) -> None:
        """Look at a service's guard."""
        self._service = service

    @property
    def is_open(self) -> bool:
        """Whether nobody need be asked about calls for inference at this moment."""
        guard = self._service.guard
        return guard is None or guard.is_open

    def check_shown(self, call: Call) -> None:
        """Refuse, before anything of its message is read, a call that shows no credentials at all.

        Raises:
            UnauthenticatedError: The server needs some.
        """
        guard = self._service.guard
        if guard is None or not guard.needs_credentials or kind_of(call.head.path) == "health":
            return
        metadata = call.head.metadata
        if not {"authorization", "x-api-key"} & metadata.keys() and not call.certificate_subject:
            guard.admit(_guarded(call, None))

    def admit(self, call: Call, model: str | None) -> Awaitable[None] | None:
        """Admit a call, at once or, where something is returned, once that is done.

        Raises:
            UnauthenticatedError: It shows no credentials, or some that do not hold.
            ForbiddenError: It lacks the right.
            RateLimitedError: It asks more often than it may.
        """
        guard = self._service.guard
        kind = kind_of(call.head.path)
        if guard is None:
            if kind in {"repository", "admin"}:
                self._check_token(call)
            return None
        if kind == "model" and guard.is_open:
            return None
        from fairlead.serve.inference.security.tokens import KeysPendingError

        guarded = _guarded(call, model)
        try:
            _enter(guard, call, guarded, guard.admit(guarded))
        except KeysPendingError:
            return self._admit_soon(guard, call, guarded)
        return None

    async def _admit_soon(self, guard: Guard, call: Call, guarded: GuardedRequest) -> None:
        _enter(guard, call, guarded, await guard.admit_soon(guarded))

    def _check_token(self, call: Call) -> None:
        given = call.head.metadata.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {self._service.admin_token}".encode()):
            raise UnauthenticatedError(
                "this method needs the admin token of the service",
                hint="send the metadata `authorization: Bearer TOKEN`; "
                "the token stands in the workspace's service file",
            )


def _enter(guard: Guard, call: Call, guarded: GuardedRequest, caller: Caller) -> None:
    call.caller = caller.name
    call.on_end = lambda status: guard.conclude(guarded, caller, status)


def _guarded(call: Call, model: str | None) -> GuardedRequest:
    metadata = call.head.metadata
    return GuardedRequest(
        method="POST",
        path=call.head.path,
        authorization=metadata.get("authorization"),
        api_key=metadata.get("x-api-key"),
        peer=call.peer,
        certificate_subject=call.certificate_subject,
        model=model,
    )
