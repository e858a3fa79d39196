"""Sequential statistics that stay valid however often they are looked at.

An e-value is a bet against the null hypothesis: it starts at 1, on average it does not grow while
the null holds, and the chance that it ever reaches 1/alpha is at most alpha (Ville 1939; Shafer
2021, "Testing by betting"; Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid
inference"). So nobody has to fix a sample size, and peeking costs nothing.

Everything is kept as logarithms: wealth passes 1e308 long before a rollout ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HARM_RATIOS",
    "DropTest",
    "FailureTest",
    "LimitTest",
    "RateBound",
    "SampleRatioTest",
    "average_log_e",
    "bet_increments",
    "e_value",
    "harm_test",
    "safety_test",
]

Floats = NDArray[np.float64]

HARM_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How many times more often the candidate may fail: the alternatives the harm test bets on."""

_SAFE_RATIOS = (0.25, 0.5, 0.75, 1.0)
_SAFE_PRIOR = (0.1, 0.1, 0.2, 0.6)
_MAX_LOG = 700.0


def e_value(log_e: float) -> float:
    """Return the e-value of its logarithm, capped where a float would overflow."""
    return math.exp(min(log_e, _MAX_LOG))


def _log_sum_exp(values: Floats) -> float:
    top = float(values.max())
    if not math.isfinite(top):
        return top
    return top + math.log(float(np.exp(values - top).sum()))


def average_log_e(log_es: Sequence[float]) -> float:
    """Average e-values into one that is valid under any dependence between them.

    One joint alarm at mean ≥ 1/alpha never fires later than separate alarms at n/alpha each
    (alpha split over the guards), because the mean is at least the largest divided by n.

    Args:
        log_es: Natural logarithms, at least one.

    Returns:
        The logarithm of the mean.
    """
    values = np.asarray(log_es, np.float64)
    return _log_sum_exp(values) - math.log(len(values))


def bet_increments(
    weight: float | Floats, ratios: Sequence[float], null_ratio: float = 1.0
) -> tuple[Floats, Floats]:
    """Return how the log-wealth of each bet moves at one failure.

    If the candidate fails `r` times as often as the baseline and gets the share `w` of the
    requests, then a failure is the candidate's with probability θ(r) = w·r / (w·r + 1 - w),
    whatever the rate of failures is at that moment. The bet on `r` multiplies its wealth by
    θ(r)/θ(r₀) when the failure is the candidate's, and by (1 - θ(r))/(1 - θ(r₀)) when not.

    Args:
        weight: Share of the requests that the candidate gets at that moment, 0 < w < 1; a
            number or shape (n,).
        ratios: The alternatives, shape (k,).
        null_ratio: r₀, the edge of the null hypothesis.

    Returns:
        Increments when the candidate failed and when the baseline failed, shape (k,) or (n, k).
    """
    share = np.asarray(weight, np.float64)[..., None]
    odds = share * np.asarray(ratios, np.float64) + 1.0 - share
    null = share * null_ratio + 1.0 - share
    baseline = np.log(null / odds)
    return np.log(np.asarray(ratios, np.float64) / null_ratio) + baseline, baseline


class FailureTest:
    """Conditional betting e-process on whose failure it was.

    Only failures are looked at. Given that a request failed, under the null the failing arm is
    Bernoulli(≤ θ(r₀)), so the test does not know or care how often requests fail, and an incident
    that hits both arms alike is no evidence. The share of the candidate may change from one
    failure to the next as long as it is set without looking at the request. Wealth is spread
    over several alternatives (a mixture, as in Robbins 1970), so no effect size has to be guessed.
    """

    def __init__(
        self,
        ratios: Sequence[float] = HARM_RATIOS,
        *,
        null_ratio: float = 1.0,
        prior: Sequence[float] | None = None,
        log_wealth: Sequence[float] | None = None,
    ) -> None:
        """Start with wealth 1, or go on from `log_wealth`.

        Args:
            ratios: Alternatives, all above `null_ratio` (is it worse?) or all below (is it safe?).
            null_ratio: Edge of the null hypothesis.
            prior: Share of the wealth on each alternative; even when None.
            log_wealth: State of an earlier test, shape (k,).

        Raises:
            ValueError: The alternatives lie on both sides of the null.
        """
        sides = {ratio > null_ratio for ratio in ratios}
        if len(sides) != 1 or null_ratio in ratios:
            raise ValueError(f"alternatives {tuple(ratios)} must lie on one side of {null_ratio}")
        self.ratios = tuple(ratios)
        self.null_ratio = null_ratio
        shares = np.full(len(self.ratios), 1.0) if prior is None else np.asarray(prior, np.float64)
        self._log_prior = np.log(shares / shares.sum())
        start = np.zeros(len(self.ratios)) if log_wealth is None else log_wealth
        self._log_wealth = np.asarray(start, np.float64).copy()
        self._steps: dict[float, tuple[Floats, Floats]] = {}

    def update(self, weight: float, *, is_candidate: bool) -> None:
        """Take note of one failure.

        Args:
            weight: Share of the requests that went to the candidate when it was assigned. A
                share of 0 or 1 cannot tell the arms apart and is no evidence.
            is_candidate: Whose failure it was.
        """
        if 0.0 < weight < 1.0:
            self._log_wealth += self._increment(weight, is_candidate=is_candidate)

    def update_burst(self, failures: Sequence[tuple[float, bool]], most: int) -> None:
        """Take note of failures that came together and may have one cause.

        They count as at most `most` failures: the product of n factors is raised to the power
        most/n, and a power below 1 of an e-value is an e-value (Jensen).

        Args:
            failures: (share of the candidate, whether it was the candidate's) of each.
            most: At how many failures the burst is capped.
        """
        kept = [(weight, own) for weight, own in failures if 0.0 < weight < 1.0]
        if not kept:
            return
        power = min(len(kept), most) / len(kept)
        for weight, own in kept:
            self._log_wealth += power * self._increment(weight, is_candidate=own)

    def _increment(self, weight: float, *, is_candidate: bool) -> Floats:
        steps = self._steps.get(weight)
        if steps is None:
            steps = self._steps[weight] = bet_increments(weight, self.ratios, self.null_ratio)
        return steps[0] if is_candidate else steps[1]

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value."""
        return _log_sum_exp(self._log_wealth + self._log_prior)

    @property
    def state(self) -> list[float]:
        """Log-wealth of each alternative; give it to `log_wealth` to go on."""
        return [float(value) for value in self._log_wealth]


def harm_test(log_wealth: Sequence[float] | None = None) -> FailureTest:
    """Test the null that the candidate fails at most as often as the baseline."""
    return FailureTest(HARM_RATIOS, log_wealth=log_wealth)


def safety_test(margin: float, log_wealth: Sequence[float] | None = None) -> FailureTest:
    """Test the null that the candidate fails at least `margin` times as often as the baseline.

    The same bet in the opposite direction: a large e-value shows that the candidate is not worse
    by more than the margin, which is what a promotion needs.

    Args:
        margin: Above 1.
        log_wealth: State of an earlier test.
    """
    return FailureTest(_SAFE_RATIOS, null_ratio=margin, prior=_SAFE_PRIOR, log_wealth=log_wealth)


class RateBound:
    """Anytime-valid upper bound on a failure rate.

    A beta-binomial mixture confidence sequence: {p : ∫L(q)dBeta(q) / L(p) < 1/alpha} holds the
    true rate at all times at once with probability 1 - alpha (Robbins 1970; Howard et al. 2021,
    "Time-uniform, nonparametric, nonasymptotic confidence sequences"). It gives an answer where
    the conditional test has nothing to look at: when nothing fails at all.
    """

    def __init__(self, alpha: float, *, expected_rate: float = 0.01) -> None:
        """Choose the error probability and where the bound shall be sharp.

        Args:
            alpha: Chance that the bound is ever wrong, 0 < alpha < 1.
            expected_rate: The bound is tightest for rates below this one; valid for all.
        """
        self.alpha = alpha
        self._a, self._b = 0.5, 0.5 / expected_rate

    def upper(self, failures: int, total: int) -> float:
        """Return the largest rate that the data do not exclude; 1 when there are none.

        Args:
            failures: Number of failures, at most `total`.
            total: Number of requests.
        """
        if total <= 0:
            return 1.0
        good = total - failures
        limit = self._log_marginal(failures, good) - math.log(1 / self.alpha)

        def is_inside(rate: float) -> bool:
            seen = failures * math.log(rate) if failures else 0.0
            return seen + good * math.log1p(-rate) > limit

        low, high = max(failures / total, 1e-15), 1.0 - 1e-15
        if failures == total or is_inside(high):
            return 1.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if is_inside(middle) else (low, middle)
        return high

    def _log_marginal(self, failures: int, good: int) -> float:
        def log_beta(a: float, b: float) -> float:
            return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

        return log_beta(self._a + failures, self._b + good) - log_beta(self._a, self._b)


class LimitTest:
    """Test the null that a failure rate is at least `limit`, in closed form.

    Bets on lower rates q multiply their wealth by q/limit at a failure and by
    (1 - q)/(1 - limit) otherwise (Wald's likelihood ratio, mixed over q); for every true rate at
    or above the limit that is a supermartingale.
    """

    _FRACTIONS = (0.0, 0.1, 0.25, 0.5)

    def __init__(self, limit: float) -> None:
        """Test against a rate, 0 < limit < 1."""
        self.limit = limit
        self._rates = np.asarray(self._FRACTIONS) * limit

    def log_e(self, failures: int, total: int) -> float:
        """Return the logarithm of the e-value after `failures` of `total` requests failed."""
        good = (total - failures) * (np.log1p(-self._rates) - math.log1p(-self.limit))
        if failures == 0:
            return average_log_e(list(good))
        # A bet on a rate of zero is lost with the first failure.
        bad = failures * np.log(np.maximum(self._FRACTIONS, 1e-300))
        return average_log_e(list(good + bad))


class DropTest:
    """Test by betting on paired differences, each between -1 and 1, that their mean is small.

    The null is mean ≥ `limit`; each bet λ multiplies its wealth by 1 + λ·(limit - d). It is the
    capital process of Waudby-Smith and Ramdas (2024), "Estimating means of bounded random
    variables by betting", with a mixture over λ. With d = right(baseline) - right(candidate) on
    the same row, a large e-value shows that quality falls by less than `limit`.
    """

    _SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

    def __init__(self, limit: float, log_wealth: Sequence[float] | None = None) -> None:
        """Start with wealth 1, or go on from `log_wealth`.

        Args:
            limit: Largest mean that is acceptable, 0 < limit < 1.
            log_wealth: State of an earlier test.
        """
        self.limit = limit
        self._bets = np.asarray(self._SHARES) / (1.0 - limit)
        start = np.zeros(len(self._SHARES)) if log_wealth is None else log_wealth
        self._log_wealth = np.asarray(start, np.float64).copy()

    def update(self, difference: float) -> None:
        """Take note of one pair; `difference` lies between -1 and 1."""
        self._log_wealth += np.log1p(self._bets * (self.limit - difference))

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value."""
        return average_log_e(list(self._log_wealth))

    @property
    def state(self) -> list[float]:
        """Log-wealth of each bet; give it to `log_wealth` to go on."""
        return [float(value) for value in self._log_wealth]


class SampleRatioTest:
    """Sequential test that each arm gets the share of the requests it was given.

    With constant shares this is the Dirichlet-multinomial mixture of Lindon and Malek (2022),
    "Anytime-valid inference for multinomial count data"; here the prediction is tilted by the
    shares of the moment, so they may change. A mismatch means that requests or answers get lost
    on one side, and then no comparison of the arms can be trusted.
    """

    def __init__(self, *, concentration: float = 100.0, state: Sequence[float] = ()) -> None:
        """Start with wealth 1, or go on from `state`.

        Args:
            concentration: How strongly the prior believes in the shares, in requests.
            state: `state` of an earlier test.
        """
        self.concentration = concentration
        self._log_e, self._seen, self._expected = 0.0, [0.0, 0.0], [0.0, 0.0]
        if state:
            self._log_e = float(state[0])
            self._seen = [float(state[1]), float(state[2])]
            self._expected = [float(state[3]), float(state[4])]

    def update(self, weight: float, *, is_candidate: bool) -> None:
        """Take note of one request; `weight` is the candidate's share, 0 < w < 1."""
        if not 0.0 < weight < 1.0:
            return
        shares = (1.0 - weight, weight)
        arm = int(is_candidate)
        tilted = [
            share * (self.concentration * share + seen) / (self.concentration * share + expected)
            for share, seen, expected in zip(shares, self._seen, self._expected, strict=True)
        ]
        self._log_e += math.log(tilted[arm] / sum(tilted) / shares[arm])
        self._seen[arm] += 1.0
        self._expected = [a + b for a, b in zip(self._expected, shares, strict=True)]

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value against the configured shares."""
        return self._log_e

    @property
    def state(self) -> list[float]:
        """What `state` of a new test needs to go on."""
        return [self._log_e, *self._seen, *self._expected]
