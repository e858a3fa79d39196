"""How soon a bad candidate is found, and how often a good one is rolled back by mistake.

    python benchmarks/rollout/detection.py [--runs 1000]

100 requests per second, 10 % of them to the candidate, for an hour at most (36,000 candidate
requests). Cells are the median number of candidate requests until the alarm; `FA` are false alarms
when both arms fail alike, without and with an incident of five minutes at 8 % that hits both. All
methods see the same simulated requests and look once per second or, where they work by windows,
once per minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fairlead.measure.sequential import HARM_RATIOS, bet_increments

ALPHA = 0.05
WEIGHT = 0.1
PER_SECOND = 100
SECONDS = 3600


@dataclass(frozen=True)
class Traffic:
    """Counts per second, each of shape (runs, SECONDS)."""

    candidate: np.ndarray
    candidate_failed: np.ndarray
    baseline: np.ndarray
    baseline_failed: np.ndarray


def simulate(rng, runs, baseline_rate, candidate_rate, *, has_incident=False) -> Traffic:
    baseline = np.full(SECONDS, baseline_rate)
    candidate = np.full(SECONDS, candidate_rate)
    if has_incident:
        baseline[1200:1500] = candidate[1200:1500] = 0.08
    own = rng.binomial(PER_SECOND, WEIGHT, (runs, SECONDS))
    rest = PER_SECOND - own
    return Traffic(own, rng.binomial(own, candidate), rest, rng.binomial(rest, baseline))


def betting(traffic: Traffic) -> np.ndarray:
    """Ours: the conditional betting e-process, looked at every second."""
    mine, theirs = bet_increments(WEIGHT, HARM_RATIOS)
    own = np.cumsum(traffic.candidate_failed, axis=1)[..., None]
    rest = np.cumsum(traffic.baseline_failed, axis=1)[..., None]
    log_e = np.logaddexp.reduce(own * mine + rest * theirs, axis=-1) - np.log(len(HARM_RATIOS))
    return log_e >= np.log(1 / ALPHA)


def minutes(counts: np.ndarray) -> np.ndarray:
    return counts.reshape(len(counts), -1, 60).sum(axis=2)


def per_second(alarm: np.ndarray) -> np.ndarray:
    """An alarm at the end of a minute belongs to the last second of it."""
    spread = np.zeros((len(alarm), SECONDS), bool)
    spread[:, 59::60] = alarm
    return spread


def z_test(traffic: Traffic) -> np.ndarray:
    """One-sided two-proportion z-test on everything so far, each minute."""
    n1, k1, n2, k2 = (
        np.cumsum(minutes(counts), axis=1).astype(float)
        for counts in (
            traffic.candidate, traffic.candidate_failed, traffic.baseline, traffic.baseline_failed,
        )
    )  # fmt: skip
    pooled = (k1 + k2) / (n1 + n2)
    spread = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / n1 + 1 / n2), 1e-12))
    return per_second((k1 / n1 - k2 / n2) / spread >= NormalDist().inv_cdf(1 - ALPHA))


def fixed_threshold(limit: float) -> Callable[[Traffic], np.ndarray]:
    """The success ratio of each minute must reach a limit; the fourth miss is an alarm."""

    def alarm(traffic: Traffic) -> np.ndarray:
        own = minutes(traffic.candidate)
        good = 1 - minutes(traffic.candidate_failed) / np.maximum(own, 1)
        return per_second(np.cumsum(good < limit, axis=1) > 3)

    return alarm


METHODS = {
    "conditional betting (fairlead)": betting,
    "z-test each 60 s": z_test,
    "success >= 95 % per 60 s, 3 misses": fixed_threshold(0.95),
    "success >= 98.5 % per 60 s, 3 misses": fixed_threshold(0.985),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    rng = np.random.default_rng(0)
    harmful = {
        "1->2 %": simulate(rng, runs, 0.01, 0.02),
        "1->5 %": simulate(rng, runs, 0.01, 0.05),
        "acc 92->90": simulate(rng, runs, 0.08, 0.10),
    }
    harmless = {
        "FA at 1 %": simulate(rng, runs, 0.01, 0.01),
        "FA at 8 %": simulate(rng, runs, 0.08, 0.08),
        "FA incident": simulate(rng, runs, 0.01, 0.01, has_incident=True),
    }
    print(f"{'method':40}" + "".join(f"{name:>13}" for name in (*harmful, *harmless)))
    for name, method in METHODS.items():
        cells = [median(method(traffic)) for traffic in harmful.values()]
        cells += [f"{method(traffic).any(axis=1).mean():.1%}" for traffic in harmless.values()]
        print(f"{name:40}" + "".join(f"{cell:>13}" for cell in cells))


def median(alarm: np.ndarray) -> str:
    """Median candidate requests until the first alarm."""
    first = np.where(alarm.any(axis=1), alarm.argmax(axis=1) + 1, SECONDS * 1000)
    found = float(np.median(first)) * PER_SECOND * WEIGHT
    return "never" if found > SECONDS * PER_SECOND * WEIGHT else f"{found:,.0f}"


if __name__ == "__main__":
    main()
