"""Which gRPC status an error leaves with."""

from __future__ import annotations

from enum import IntEnum

from fairlead.core import errors
from fairlead.serve.inference.problems import describe

__all__ = ["CODES", "CallError", "Code", "code_of", "explain"]


class Code(IntEnum):
    """Status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODES: dict[type[errors.FairleadError], Code] = {
    errors.FairleadError: Code.INTERNAL,
    errors.UsageError: Code.INVALID_ARGUMENT,
    errors.ModelError: Code.INVALID_ARGUMENT,
    errors.UntrustedError: Code.PERMISSION_DENIED,
    errors.ModelCodeError: Code.INTERNAL,
    errors.DataError: Code.INVALID_ARGUMENT,
    errors.BundleError: Code.FAILED_PRECONDITION,
    errors.RefusedError: Code.FAILED_PRECONDITION,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.ConflictError: Code.ABORTED,
    errors.WorkspaceError: Code.RESOURCE_EXHAUSTED,
    errors.AccessError: Code.PERMISSION_DENIED,
    errors.UnauthenticatedError: Code.UNAUTHENTICATED,
    errors.RateLimitedError: Code.RESOURCE_EXHAUSTED,
    errors.EndpointError: Code.UNAVAILABLE,
    errors.MissingExtraError: Code.UNIMPLEMENTED,
}
"""Kind of error → code; a kind that is missing leaves like its family."""


class CallError(Exception):
    """A call that ends with a status which belongs to gRPC alone."""

    def __init__(self, code: Code, text: str) -> None:
        """Say which, and why."""
        super().__init__(text)
        self.code = code
        self.text = text


def code_of(error: BaseException) -> Code:
    """Return the code that an error leaves with."""
    if isinstance(error, CallError):
        return error.code
    if isinstance(error, errors.FairleadError):
        return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return Code.DEADLINE_EXCEEDED if isinstance(error, TimeoutError) else Code.INTERNAL


def explain(error: BaseException) -> str:
    """Return what the client reads: the message, and the hint behind it."""
    if isinstance(error, CallError):
        return error.text
    message, hint = describe(error)
    return f"{message} (hint: {hint})" if hint else message
