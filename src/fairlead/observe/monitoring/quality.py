"""Whether the model got worse, where the labels are known."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.core.bundle import Score, Scores
from fairlead.measure.tails import normal_sf
from fairlead.observe.monitoring.config import MonitoringConfig

__all__ = ["QualityDrop", "quality_drop"]

_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class QualityDrop:
    """The bundle's primary score then and now.

    Attributes:
        metric: Its name.
        before: The score in the bundle.
        now: The same score on the current rows.
        drop: How much worse it is now, in units of the score; negative when it is better.
        ci_low: Lower end of the drop's 95 % confidence interval.
        ci_high: Upper end.
        p_value: Chance of so large a drop if the true one is what the settings tolerate.
        is_drop: Whether the loss is proven to exceed what is tolerated.
    """

    metric: str
    before: Score
    now: Score
    drop: float
    ci_low: float
    ci_high: float
    p_value: float
    is_drop: bool


def quality_drop(
    reference: Scores, current: Scores, config: MonitoringConfig
) -> QualityDrop | None:
    """Compare the primary score of the bundle with the one on labelled current rows.

    The difference of two estimates with confidence intervals has the interval of Newcombe (1998,
    his method 10): the distances of the estimates to their limits are added as squares. The test
    asks whether the loss exceeds the tolerated one, so that many rows do not make an alarm of a
    trifle.

    Returns:
        None when one side has no such score.
    """
    before = reference.primary
    if before is None:
        return None
    now = next((score for score in current.scores if score.metric == before.metric), None)
    if now is None:
        return None
    better, worse = (before, now) if before.is_higher_better else (now, before)
    drop = better.value - worse.value
    below = ((better.value - better.ci_low) ** 2 + (worse.ci_high - worse.value) ** 2) ** 0.5
    above = ((better.ci_high - better.value) ** 2 + (worse.value - worse.ci_low) ** 2) ** 0.5
    z = (drop - config.max_quality_drop) / max(below / _Z, 1e-12)
    p_value = normal_sf(z)
    return QualityDrop(
        metric=before.metric,
        before=before,
        now=now,
        drop=drop,
        ci_low=drop - below,
        ci_high=drop + above,
        p_value=p_value,
        is_drop=p_value <= config.alpha and drop > config.max_quality_drop,
    )
