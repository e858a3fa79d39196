"""One table: error → exit code, HTTP status."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.core import errors

__all__ = ["PROBLEMS", "Problem", "problem_of"]


@dataclass(frozen=True, slots=True)
class Problem:
    """How one kind of error leaves the process.

    Attributes:
        exit_code: 1 when the answer is no, 2 when the input or surroundings are wrong.
        http_status: Status of an HTTP answer.
    """

    exit_code: int
    http_status: int


PROBLEMS: dict[type[errors.FairleadError], Problem] = {
    errors.FairleadError: Problem(2, 500),
    errors.UsageError: Problem(2, 400),
    errors.ConfigError: Problem(2, 400),
    errors.PlanError: Problem(2, 400),
    errors.ModelError: Problem(2, 422),
    errors.UntrustedError: Problem(2, 403),
    errors.ModelCodeError: Problem(2, 500),
    errors.DataError: Problem(2, 400),
    errors.SignatureError: Problem(2, 400),
    errors.BundleError: Problem(2, 422),
    errors.IntegrityError: Problem(2, 422),
    errors.RefusedError: Problem(1, 409),
    errors.BudgetError: Problem(1, 409),
    errors.GateError: Problem(1, 409),
    errors.NotFoundError: Problem(2, 404),
    errors.ConflictError: Problem(2, 409),
    errors.WorkspaceError: Problem(2, 507),
    errors.AccessError: Problem(2, 403),
    errors.UnauthenticatedError: Problem(2, 401),
    errors.ForbiddenError: Problem(2, 403),
    errors.RateLimitedError: Problem(2, 429),
    errors.EndpointError: Problem(2, 502),
    errors.DeadlineError: Problem(2, 504),
    errors.PortInUseError: Problem(2, 503),
    errors.OverloadedError: Problem(2, 503),
    errors.UnavailableError: Problem(2, 503),
    errors.MissingExtraError: Problem(2, 501),
}


def problem_of(error: errors.FairleadError) -> Problem:
    """Return how an error leaves the process; the nearest entry of its family."""
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return PROBLEMS[errors.FairleadError]
