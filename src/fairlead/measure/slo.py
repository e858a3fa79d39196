"""Service levels: the error budget that is left, and how fast it burns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fairlead.core.values import Config, Value

__all__ = [
    "BURN_RULES",
    "BurnRate",
    "BurnRule",
    "ErrorBudget",
    "ServiceLevels",
    "error_budget",
    "span",
]


class ServiceLevels(Config):
    """What users are promised."""

    availability: float = Field(0.999, gt=0, lt=1)
    """Share of requests that are answered without an error of the server."""
    latency_ms: float = Field(250.0, gt=0, le=30_000)
    """Latency that requests are held to, in ms, up to the last bound of the server's histogram."""
    latency_ratio: float = Field(0.99, gt=0, lt=1)
    """Share of requests that are answered within `latency_ms`."""
    period_days: float = Field(30.0, gt=0)
    """Length of the period that the budget is for, in days."""
    min_errors: int = Field(5, ge=1)
    """Fewest bad requests that alarm, so that one error in a quiet hour wakes nobody."""


@dataclass(frozen=True, slots=True)
class BurnRule:
    """One alert: the budget burns too fast in a long window, and still does in a short one.

    Attributes:
        factor: Burn rate; 1 spends the budget in exactly the period.
        long_s: The long window, in seconds.
        short_s: The short window, in seconds.
        severity: `page` or `ticket`.
    """

    factor: float
    long_s: int
    short_s: int
    severity: str


_HOUR = 3600

BURN_RULES: Final[tuple[BurnRule, ...]] = (
    BurnRule(14.4, 1 * _HOUR, 300, "page"),
    BurnRule(6.0, 6 * _HOUR, 1800, "page"),
    BurnRule(3.0, 24 * _HOUR, 2 * _HOUR, "ticket"),
    BurnRule(1.0, 72 * _HOUR, 6 * _HOUR, "ticket"),
)
"""Windows and factors of The Site Reliability Workbook (2018), chapter 5, table 5-8."""


class BurnRate(Value):
    """How fast the budget burned in one window."""

    window_s: int
    requests: int
    bad: int
    burn_rate: float
    """Share of bad requests over the allowed share; above 1 the budget does not last."""


class ErrorBudget(Value):
    """One promise, and how much of what it allows is left."""

    promise: str
    """`availability` or `latency`."""
    target: float
    requests: int
    bad: int
    left_ratio: float
    """Share of the allowed bad requests of the period that is left; negative when overspent."""
    burn_rates: tuple[BurnRate, ...]
    firing: tuple[str, ...]
    """Rules that would alert now, for example `page 14.4x over 1h and 5m`."""


def error_budget(
    promise: str,
    target: float,
    age_s: NDArray[np.float64],
    is_bad: NDArray[np.bool_],
    *,
    levels: ServiceLevels,
) -> ErrorBudget:
    """Count what was spent, every request alike however busy the hour was.

    Args:
        promise: `availability` or `latency`.
        target: Promised share of good requests, between 0 and 1.
        age_s: Age of every request in seconds, shape (n_requests,).
        is_bad: Whether it broke the promise, shape (n_requests,).
        levels: Gives the period and the fewest bad requests that alarm.
    """
    allowed = 1 - target
    inside = age_s <= levels.period_days * 86_400
    requests, bad = int(inside.sum()), int((is_bad & inside).sum())
    windows = sorted({length for rule in BURN_RULES for length in (rule.long_s, rule.short_s)})
    rates = {length: _burn_rate(length, age_s, is_bad, allowed) for length in windows}
    firing = tuple(
        f"{rule.severity} {rule.factor:g}x over {span(rule.long_s)} and {span(rule.short_s)}"
        for rule in BURN_RULES
        if rates[rule.long_s].burn_rate > rule.factor
        and rates[rule.short_s].burn_rate > rule.factor
        and rates[rule.long_s].bad >= levels.min_errors
    )
    return ErrorBudget(
        promise=promise,
        target=target,
        requests=requests,
        bad=bad,
        left_ratio=1 - bad / (allowed * requests) if requests else 1.0,
        burn_rates=tuple(rates.values()),
        firing=firing,
    )


def _burn_rate(
    length: int, age_s: NDArray[np.float64], is_bad: NDArray[np.bool_], allowed: float
) -> BurnRate:
    inside = age_s <= length
    requests, bad = int(inside.sum()), int((is_bad & inside).sum())
    rate = bad / requests / allowed if requests else 0.0
    return BurnRate(window_s=length, requests=requests, bad=bad, burn_rate=rate)


def span(seconds: int) -> str:
    """Write a duration as Prometheus does.

    Examples:
        >>> span(300), span(21600), span(259200)
        ('5m', '6h', '3d')
    """
    if seconds % 86_400 == 0:
        return f"{seconds // 86_400}d"
    return f"{seconds // _HOUR}h" if seconds % _HOUR == 0 else f"{seconds // 60}m"
