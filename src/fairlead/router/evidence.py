"""Measurements that answer a question in place of the user.

Read are, newest first: `threads_per_cpu` (threads of one run for each CPU), `model_time_share`
(with the verdict of whoever took the profile, where it has one), `queue_time_share` and
`network_time_share` (share of a request, ratio), `padding_share` (of sequences, as what a profile's
verdict rests on),
`latency_p95_ms` or `latency_p99_ms` or `latency_p50_ms` against `latency_slo_ms`,
`accuracy_drop_ratio`, `drift_detected`, `prediction_drift_detected`, `training_time_share`,
`alerts_firing` and `error_rate_ratio`. A value near the middle settles nothing: then the
question is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fairlead.core.evidence import Evidence
from fairlead.router.answers import QuestionId, Reading

__all__ = ["settle"]

_MODEL_SHARE: Final = 0.6
_AROUND_SHARE: Final = 0.4
_CROWD: Final = 2.0
"""Threads of one run for each CPU: that many never help, whatever a busy machine measures."""
_SIDES: Final = frozenset({"model", "infrastructure"})
_AROUND: Final = ("queue_time_share", "network_time_share")
_CAUSES: Final = {
    "capacity": "queue_time_share",
    "batching": "queue_time_share",
    "network": "network_time_share",
    "threads": "threads_per_cpu",
    "data-path": "padding_share",
}
_PADDED: Final = 0.3
"""Share of padding that decides on its own."""
_ACCURACY_DROP: Final = 0.02
_ERROR_RATE: Final = 0.01

Found = tuple[str, Evidence]
"""The option and the measurement that chose it."""


def settle(question: QuestionId, evidence: Sequence[Evidence]) -> Reading | None:
    """Return the measurement that answers a question, or None when it must be asked."""
    rule = _RULES.get(question)
    found = rule(evidence) if rule else None
    if found is None:
        return None
    option, item = found
    return Reading(
        metric=item.metric,
        value=item.value,
        unit=item.unit,
        subject=item.subject,
        settled=question,
        option=option,
    )


def _newest(evidence: Sequence[Evidence], *metrics: str) -> Evidence | None:
    """Return the last measurement given of the first metric that was measured at all."""
    for metric in metrics:
        found = [item for item in evidence if item.metric == metric and item.value == item.value]
        if found:
            return max(found, key=lambda item: item.measured_at)
    return None


def _ratio(item: Evidence) -> float:
    return item.value / 100 if item.unit.casefold() in {"%", "percent"} else item.value


def _model_or_infrastructure(evidence: Sequence[Evidence]) -> Found | None:
    share = _newest(evidence, "model_time_share")
    crowd = _newest(evidence, "threads_per_cpu")
    if crowd and crowd.value >= _CROWD and (not share or crowd.measured_at >= share.measured_at):
        return "infrastructure", crowd
    if share and share.labels.get("verdict") in _SIDES:
        return share.labels["verdict"], _decisive(evidence, share)
    if share and _ratio(share) >= _MODEL_SHARE:
        return "model", share
    if share and _ratio(share) <= _AROUND_SHARE:
        return "infrastructure", share
    return next(
        (
            ("infrastructure", around)
            for around in (_newest(evidence, metric) for metric in _AROUND)
            if around and _ratio(around) >= _MODEL_SHARE
        ),
        None,
    )


def _decisive(evidence: Sequence[Evidence], share: Evidence) -> Evidence:
    """Return the share that the profile's verdict rests on: of the queue, the network or the run.

    Whoever took the profile weighed all its times; its verdict counts more than any one share.
    """
    metric = _CAUSES.get(share.labels.get("cause", ""), share.metric)
    same = [item for item in evidence if item.subject == share.subject]
    found = _newest(same, metric)
    if found and metric == "padding_share" and _ratio(found) < _PADDED:
        return share
    return found if found and found.labels == share.labels else share


def _inference_or_training(evidence: Sequence[Evidence]) -> Found | None:
    seen = _late(evidence) or _newest(evidence, "model_time_share", "queue_time_share")
    if seen:
        return "inference", seen
    training = _newest(evidence, "training_time_share")
    return ("training", training) if training and _ratio(training) >= _MODEL_SHARE else None


def _late(evidence: Sequence[Evidence]) -> Evidence | None:
    """Return the latency that breaks its objective, or None."""
    latency = _newest(evidence, "latency_p95_ms", "latency_p99_ms", "latency_p50_ms")
    limit = _newest(evidence, "latency_slo_ms")
    return latency if latency and limit and latency.value > limit.value else None


def _moved(evidence: Sequence[Evidence]) -> Evidence | None:
    """Return the measurement that shows predictions to be off, or None."""
    drop = _newest(evidence, "accuracy_drop_ratio")
    if drop and _ratio(drop) > _ACCURACY_DROP:
        return drop
    drift = _newest(evidence, "drift_detected", "prediction_drift_detected")
    return drift if drift and drift.value >= 1 else None


def _speed_or_accuracy(evidence: Sequence[Evidence]) -> Found | None:
    late, moved = _late(evidence), _moved(evidence)
    if late and not moved:
        return "speed", late
    if moved and not late:
        return "accuracy", moved
    return None


def _proactive_or_reactive(evidence: Sequence[Evidence]) -> Found | None:
    errors = _newest(evidence, "error_rate_ratio")
    if errors and _ratio(errors) > _ERROR_RATE:
        return "reactive", errors
    firing = _newest(evidence, "alerts_firing")
    if firing and firing.value >= 1:
        return "reactive", firing
    moved = _moved(evidence)
    return ("reactive", moved) if moved else None


_RULES: Final[dict[QuestionId, Callable[[Sequence[Evidence]], Found | None]]] = {
    "model-or-infrastructure": _model_or_infrastructure,
    "speed-inference-or-training": _inference_or_training,
    "speed-or-accuracy": _speed_or_accuracy,
    "proactive-or-reactive": _proactive_or_reactive,
}
