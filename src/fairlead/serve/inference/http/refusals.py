"""Errors as answers: a status, a sentence, a hint, and when to come again."""

from __future__ import annotations

import logging
import math

from fairlead.core.errors import OverloadedError, RateLimitedError, UnauthenticatedError
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.head import HttpError
from fairlead.serve.inference.problems import describe, status_of

__all__ = ["refuse", "status_of_any"]

_log = logging.getLogger(__name__)


def status_of_any(error: BaseException) -> int:
    """Return the status that an error is answered with."""
    return error.status if isinstance(error, HttpError) else status_of(error)


def refuse(exchange: Exchange, error: Exception) -> None:
    """Answer with what went wrong."""
    status = status_of_any(error)
    if isinstance(error, HttpError):
        exchange.refuse(status, error.message, error.hint)
        return
    if status == 500:
        _log.error("a request failed", exc_info=error)
    message, hint = describe(error)
    headers = {}
    if isinstance(error, OverloadedError | RateLimitedError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    exchange.refuse(status, message, hint, headers)
