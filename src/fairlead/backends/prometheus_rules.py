"""Recording and alerting rules for Prometheus, about one service.

The metric names are those of the server's `/metrics` and of the text file that
`fairlead observe drift --textfile` writes for node_exporter.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fairlead.backends.services import check_service_name
from fairlead.measure.slo import BURN_RULES, BurnRule, ServiceLevels, span

__all__ = ["LATENCY_BUCKETS_S", "build_rules", "render_rules"]

LATENCY_BUCKETS_S: Final[tuple[float, ...]] = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
)  # fmt: skip
"""Upper bounds of `fairlead_request_duration_seconds` as the server exports it."""

_ERRORS = "5.."
_QUIET_S = 600
_STALE_S = 2 * 86_400


def render_rules(
    *,
    service: str,
    slo_availability: float = 0.999,
    slo_latency_ms: float = 250.0,
    slo_latency_ratio: float = 0.99,
    slo_period_days: float = 30.0,
    min_errors: int = 5,
) -> str:
    """Return the rules of a service as YAML, ready for `rule_files` of Prometheus.

    Args:
        service: Name of the service, the label `model` of its metrics.
        slo_availability: Share of requests without an error of the server, between 0 and 1.
        slo_latency_ms: Latency that requests are held to, in ms.
        slo_latency_ratio: Share of requests within that latency, between 0 and 1.
        slo_period_days: Length of the period that the budgets are for, in days.
        min_errors: Fewest bad requests in the long window that alarm.

    Raises:
        UsageError: The name cannot be that of a service.
        ConfigError: A number is out of range.
    """
    import yaml

    levels = ServiceLevels.parse(
        {
            "availability": slo_availability,
            "latency_ms": slo_latency_ms,
            "latency_ratio": slo_latency_ratio,
            "period_days": slo_period_days,
            "min_errors": min_errors,
        }
    )
    head = (
        f"# Alert rules of the service {service}: availability {levels.availability:g}, "
        f"{levels.latency_ratio:g} of the requests within {levels.latency_ms:g} ms.\n"
        "# Check with: promtool check rules FILE\n"
    )
    document = build_rules(service, levels)
    return head + yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


def build_rules(service: str, levels: ServiceLevels) -> dict[str, Any]:
    """Return the rules of a service as the document that Prometheus reads.

    Every promise has alerts over several windows and burn rates. A ratio over a window is bad
    requests over all requests of that window, so a busy minute counts for more than a quiet one.

    Raises:
        UsageError: The name cannot be that of a service.
    """
    check_service_name(service)
    promises = (
        ("availability", levels.availability, _availability_counts(service)),
        ("latency", levels.latency_ratio, _latency_counts(service, levels.latency_ms)),
    )
    groups = []
    for promise, target, (bad, total) in promises:
        rules = [*_recorded(service, promise, bad, total)]
        rules += _burn_alerts(service, promise, target, bad, levels)
        groups.append({"name": f"fairlead-{service}-{promise}", "rules": rules})
    groups.append({"name": f"fairlead-{service}-health", "rules": _health_alerts(service)})
    groups.append({"name": f"fairlead-{service}-drift", "rules": _drift_alerts(service)})
    return {"groups": groups}


def _quoted(text: str) -> str:
    return json.dumps(text)


def _availability_counts(service: str) -> tuple[str, str]:
    """Return the selectors of bad and of all requests, with WINDOW for the window."""
    model = _quoted(service)
    total = f"sum(increase(fairlead_requests_total{{model={model}}}[WINDOW]))"
    bad = f'sum(increase(fairlead_requests_total{{model={model},status=~"{_ERRORS}"}}[WINDOW]))'
    # Without any error there is no such series, but there were zero errors.
    return f"({bad} or {total} * 0)", total


def _latency_counts(service: str, latency_ms: float) -> tuple[str, str]:
    model = _quoted(service)
    total = f"sum(increase(fairlead_request_duration_seconds_count{{model={model}}}[WINDOW]))"
    return f"({total} - {_within(model, latency_ms / 1e3)})", total


def _within(model: str, seconds: float) -> str:
    """Count requests within a latency, on a straight line between two bounds of the histogram."""

    def up_to(bound: float) -> str:
        # Servers write 1 or 1.0 for the same bound.
        names = dict.fromkeys((f"{bound:g}", repr(bound)))
        pattern = "|".join(name.replace(".", "\\\\.") for name in names)
        series = f'fairlead_request_duration_seconds_bucket{{model={model},le=~"{pattern}"}}'
        return f"sum(increase({series}[WINDOW]))"

    below = [bound for bound in LATENCY_BUCKETS_S if bound <= seconds]
    above = [bound for bound in LATENCY_BUCKETS_S if bound > seconds]
    if not above or (below and below[-1] == seconds):
        return up_to(below[-1])
    low = below[-1] if below else 0.0
    share = (seconds - low) / (above[0] - low)
    if not below:
        return f"{share:.6g} * {up_to(above[0])}"
    return f"({1 - share:.6g} * {up_to(low)} + {share:.6g} * {up_to(above[0])})"


def _record_name(promise: str, seconds: int) -> str:
    return f"fairlead:{promise}_bad_requests:ratio_increase{span(seconds)}"


def _recorded(service: str, promise: str, bad: str, total: str) -> list[dict[str, Any]]:
    windows = sorted({length for rule in BURN_RULES for length in (rule.long_s, rule.short_s)})
    return [
        {
            "record": _record_name(promise, length),
            "expr": f"{bad} / ({total} > 0)".replace("WINDOW", span(length)),
            "labels": {"service": service},
        }
        for length in windows
    ]


def _burn_alerts(
    service: str, promise: str, target: float, bad: str, levels: ServiceLevels
) -> list[dict[str, Any]]:
    budget = 1 - target
    alerts = []
    for rule in BURN_RULES:
        limit = rule.factor * budget
        if limit >= 1:
            continue  # Not even a total outage burns that fast.
        alerts.append(_burn_alert(service, promise, rule, limit, bad, levels))
    return alerts


def _burn_alert(
    service: str, promise: str, rule: BurnRule, limit: float, bad: str, levels: ServiceLevels
) -> dict[str, Any]:
    windows = [
        f"{_record_name(promise, length)}{{service={_quoted(service)}}} > {limit:.6g}"
        for length in (rule.long_s, rule.short_s)
    ]
    # Extrapolation makes 4.9 of five errors; half an event less is still five.
    enough = f"{bad} > {levels.min_errors - 0.5:g}".replace("WINDOW", span(rule.long_s))
    days = levels.period_days / rule.factor
    lasts = f"{days:.3g} days" if days >= 2 else f"{days * 24:.3g} hours"
    return {
        "alert": f"Fairlead{promise.capitalize()}BudgetBurn",
        "expr": f"{windows[0]}\nand on ()\n{windows[1]}\nand on ()\n{enough}",
        "labels": {
            "severity": rule.severity,
            "service": service,
            "window": span(rule.long_s),
        },
        "annotations": {
            "summary": f"{service} burns its {promise} budget {rule.factor:g} times too fast",
            "description": (
                "{{ $value | humanizePercentage }} of the requests of the last "
                f"{span(rule.long_s)} broke the promise; at this rate the budget of "
                f"{levels.period_days:g} days lasts {lasts}."
            ),
            "advice": _ADVICE[promise],
        },
    }


_ADVICE = {
    "availability": "Look at the newest rollout first and roll back if it coincides.",
    "latency": "fairlead observe debug latency tells where the time of a request goes.",
}


def _health_alerts(service: str) -> list[dict[str, Any]]:
    model = _quoted(service)
    requests = f"fairlead_requests_total{{model={model}}}"
    return [
        {
            "alert": "FairleadServiceDown",
            "expr": f"absent(fairlead_traffic_weight{{model={model}}})",
            "for": "2m",
            "labels": {"severity": "page", "service": service},
            "annotations": {
                "summary": f"Prometheus sees no server of {service}",
                "description": "No server answered the last scrapes.",
                "advice": "fairlead serve status shows whether it runs.",
            },
        },
        {
            "alert": "FairleadNoTraffic",
            "expr": (
                f"sum(increase({requests}[{span(_QUIET_S)}])) == 0\n"
                f"and on () sum(increase({requests}[1d] offset {span(_QUIET_S)})) > 0"
            ),
            "for": "5m",
            "labels": {"severity": "ticket", "service": service},
            "annotations": {
                "summary": f"{service} gets no requests any more",
                "description": f"None for {span(_QUIET_S)}, after traffic within the last day.",
                "advice": "Look at the caller and at what lies between it and the server.",
            },
        },
        {
            "alert": "FairleadPredictionsDropped",
            "expr": (
                "sum by (instance) (increase(fairlead_predictions_dropped_total[15m])\n"
                f"and on (instance) fairlead_traffic_weight{{model={model}}}) > 0"
            ),
            "labels": {"severity": "ticket", "service": service},
            "annotations": {
                "summary": f"{service} loses predictions on {{{{ $labels.instance }}}}",
                "description": "{{ $value | humanize }} predictions of the last 15m were not "
                "logged, so drift and audits miss them.",
                "advice": "Free disk space, or give the workspace a faster disk.",
            },
        },
    ]


def _drift_alerts(service: str) -> list[dict[str, Any]]:
    name = _quoted(service)
    return [
        {
            "alert": "FairleadDrift",
            "expr": f"fairlead_drift_alert{{service={name}}} == 1",
            "labels": {"severity": "ticket", "service": service},
            "annotations": {
                "summary": f"What {service} sees or says has shifted",
                "description": "Kind: {{ $labels.kind }}. The gauge fairlead_drift_effect names "
                "the columns.",
                "advice": "Label some current rows and watch them with --labels.",
            },
        },
        {
            "alert": "FairleadDriftNotWatched",
            "expr": (f"time() - fairlead_drift_timestamp_seconds{{service={name}}} > {_STALE_S}"),
            "labels": {"severity": "ticket", "service": service},
            "annotations": {
                "summary": f"Drift of {service} was not measured for two days",
                "description": "The last comparison is {{ $value | humanizeDuration }} old.",
                "advice": "Look at the schedule that runs fairlead observe drift.",
            },
        },
    ]
