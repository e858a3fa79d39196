"""What a rollout needs of the outside: a server it can steer, and traffic that reaches it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fairlead.core.endpoint import TrafficSplit

if TYPE_CHECKING:
    from fairlead.backends.endpoint import OutcomePage, RequestOutcome

__all__ = ["Judgement", "LiveTraffic", "Observation", "RolloutTarget", "Traffic"]


class RolloutTarget(Protocol):
    """A server with two arms; `backends.endpoint.EndpointClient` is one."""

    def traffic(self) -> TrafficSplit:
        """Return the share of the requests each arm gets."""

    def set_traffic(self, split: TrafficSplit) -> TrafficSplit:
        """Change the share of the requests each arm gets."""

    def outcomes(self, after: int = 0, limit: int = 1000) -> OutcomePage:
        """Return what became of the requests after number `after`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known about an answer beyond its status.

    Attributes:
        is_finite: Whether every number of the answer is finite.
        row: Row of the replayed data; None for live traffic.
        loss: How wrong the answer is: 0 or 1 for classes, the absolute error for numbers; None
            when nobody knows the label.
        prediction: Predicted label or value, for comparing the arms.
    """

    is_finite: bool = True
    row: int | None = None
    loss: float | None = None
    prediction: str | float | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One answered request of a rollout.

    Attributes:
        outcome: What became of it.
        is_candidate: Which arm answered.
        weight_low: Least share that the candidate may have had when the arm was drawn.
        weight_high: Largest such share; equal to the least unless the share was just changing.
        judgement: What is known about the answer.
    """

    outcome: RequestOutcome
    is_candidate: bool
    weight_low: float
    weight_high: float
    judgement: Judgement

    @property
    def is_failed(self) -> bool:
        """Whether the server refused, failed, or answered with a number that is not finite.

        Refusals (4xx) count: a caller's mistakes hit both arms alike and are no evidence, but a
        candidate that refuses what the baseline accepts is broken.
        """
        return self.outcome.status >= 400 or not self.judgement.is_finite


class Traffic(Protocol):
    """Where the requests come from."""

    @property
    def is_replayed(self) -> bool:
        """Whether no request is under way between two calls of `advance`."""

    @property
    def n_labelled(self) -> int:
        """Rows with a known label, each of which both arms will answer; 0 for live traffic."""

    @property
    def pending(self) -> int:
        """Answers whose outcome has not been seen yet; 0 for live traffic."""

    @property
    def lost(self) -> int:
        """Requests that were sent and left no outcome."""

    def advance(self) -> int:
        """Let some requests happen; return how many were sent, 0 when others send them."""

    def judge(self, outcome: RequestOutcome) -> Judgement:
        """Return what is known about one answer."""


class LiveTraffic:
    """Requests that other people send: wait a moment and look."""

    is_replayed = False
    n_labelled = 0
    pending = 0
    lost = 0

    def __init__(
        self,
        *,
        check_seconds: float,
        labels: Callable[[], Mapping[str, Any]] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Watch live traffic.

        Args:
            check_seconds: Time in seconds between two looks.
            labels: Returns request id → true label, for as many requests as are known by now.
            sleep: Waits that many seconds.
        """
        self._check_seconds = check_seconds
        self._read_labels = labels
        self._labels: Mapping[str, Any] = {}
        self._sleep = sleep
        self._has_predictions = False

    def advance(self) -> int:
        """Wait, and read the labels that have become known."""
        self._sleep(self._check_seconds)
        if self._read_labels is not None:
            self._labels = self._read_labels()
        return 0

    def judge(self, outcome: RequestOutcome) -> Judgement:
        """Judge by the prediction in the outcome and the label of its request id."""
        value = outcome.prediction
        if outcome.status != 200:
            return Judgement()
        if value is None:
            # JSON has no NaN, so it arrives as null; some models never give a single prediction.
            return Judgement(is_finite=not self._has_predictions)
        self._has_predictions = True
        if isinstance(value, list):
            return Judgement(is_finite=all(_is_finite(item) for item in value))
        label = self._labels.get(outcome.id)
        loss = None if label is None else _loss(value, label)
        return Judgement(_is_finite(value), None, loss, value)


def _is_finite(value: object) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _loss(prediction: Any, label: Any) -> float:  # noqa: ANN401 (labels are of any kind)
    if isinstance(prediction, float) and isinstance(label, int | float):
        return abs(prediction - float(label))
    return float(prediction != label)
