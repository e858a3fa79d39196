"""Which HTTP status an error leaves with; the same numbers as `entrypoints.problem`."""

from __future__ import annotations

from fairlead.core import errors

__all__ = ["CLIENT_GONE", "STATUSES", "describe", "status_of"]

CLIENT_GONE = 499
"""The status under which a request is counted whose client left before its answer."""

STATUSES: dict[type[errors.FairleadError], int] = {
    errors.FairleadError: 500,
    errors.UsageError: 400,
    errors.ConfigError: 400,
    errors.PlanError: 400,
    errors.ModelError: 422,
    errors.UntrustedError: 403,
    errors.ModelCodeError: 500,
    errors.DataError: 400,
    errors.SignatureError: 400,
    errors.BundleError: 422,
    errors.IntegrityError: 422,
    errors.RefusedError: 409,
    errors.BudgetError: 409,
    errors.GateError: 409,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.WorkspaceError: 507,
    errors.AccessError: 403,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.RateLimitedError: 429,
    errors.EndpointError: 502,
    errors.DeadlineError: 504,
    errors.PortInUseError: 503,
    errors.OverloadedError: 503,
    errors.UnavailableError: 503,
    errors.MissingExtraError: 501,
}


def status_of(error: BaseException) -> int:
    """Return the status of the nearest entry of the error's family; 504 for a timeout."""
    if isinstance(error, errors.FairleadError):
        return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    return 504 if isinstance(error, TimeoutError) else 500


def describe(error: BaseException) -> tuple[str, str]:
    """Return the message and the hint that a client may read."""
    if isinstance(error, errors.FairleadError):
        return error.message, error.hint
    if isinstance(error, TimeoutError):
        return (
            "there is no answer within the time that the request has",
            "allow it more by `x-request-timeout-ms`, send fewer rows at once, or add replicas",
        )
    return (
        f"the server failed: {type(error).__name__}",
        "its log says more; report it if it comes again",
    )
