"""Service levels: alert rules for Prometheus, and the error budget that is left."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.api.context import Context
from fairlead.api.watched import read_log
from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.measure.slo import BurnRate, ErrorBudget, ServiceLevels, error_budget, span

if TYPE_CHECKING:
    from fairlead.core.prediction import PredictionBatch

__all__ = ["error_budgets", "write_alert_rules"]

_SKILL = "production-monitoring-and-alerting"


def write_alert_rules(
    service: str,
    *,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
) -> Outcome[Path]:
    """Write recording and alerting rules of a service for Prometheus.

    Args:
        service: Name of the service.
        out: YAML file to write, whole or not at all.
        settings: Settings of `ServiceLevels`.

    Raises:
        UsageError: The name cannot be that of a service.
        ConfigError: A setting is unknown or out of range.
        WorkspaceError: The file cannot be written.
    """
    from fairlead.backends.prometheus_rules import build_rules, render_rules
    from fairlead.core.files import user_path, write_text

    levels = ServiceLevels.parse(settings or {})
    groups = build_rules(service, levels)["groups"]
    path = user_path(out)
    write_text(
        path,
        render_rules(
            service=service,
            slo_availability=levels.availability,
            slo_latency_ms=levels.latency_ms,
            slo_latency_ratio=levels.latency_ratio,
            slo_period_days=levels.period_days,
            min_errors=levels.min_errors,
        ),
    )
    rules = [rule for group in groups for rule in group["rules"]]
    return Outcome(path, _rules_report(service, path, rules, levels))


def _rules_report(
    service: str, path: Path, rules: list[dict[str, Any]], levels: ServiceLevels
) -> Report:
    alerts = [rule for rule in rules if "alert" in rule]
    return Report(
        skill=_SKILL,
        title=f"Alert rules of {service}",
        summary=f"{len(alerts)} alerts and {len(rules) - len(alerts)} recording rules for "
        f"availability {levels.availability:g} and {levels.latency_ratio:g} of the requests "
        f"within {levels.latency_ms:g} ms.",
        findings=(
            Finding(
                level="info",
                text="Prometheus reads them as one of its rule_files",
                advice=f"check them with `promtool check rules {path}`",
            ),
        ),
        tables=(
            Table(
                title="Alerts",
                columns=("alert", "severity", "window"),
                rows=tuple(
                    (rule["alert"], rule["labels"]["severity"], rule["labels"].get("window"))
                    for rule in alerts
                ),
            ),
        ),
        files={"rules": str(path)},
    )


def error_budgets(
    service: str,
    *,
    since: str | None = None,
    settings: Mapping[str, Any] | None = None,
    now: datetime | None = None,
    context: Context | None = None,
) -> Outcome[tuple[ErrorBudget, ...]]:
    """Count from the prediction log what is left of the error budgets, and how fast they burn.

    Args:
        service: Name of the service.
        since: How far back the log is read; the period of the levels when None.
        settings: Settings of `ServiceLevels`.
        now: The end of all windows; the present when None.
        context: Workspace; opened from the environment when None.

    Raises:
        NotFoundError: No prediction was logged in that time.
        ConfigError: A setting is unknown or out of range.
    """
    levels = ServiceLevels.parse(settings or {})
    ctx = context or Context.open()
    batch = read_log(ctx, service, since=since or f"{levels.period_days:g}d")
    budgets = _budgets(batch, levels, now or datetime.now(UTC))
    return ctx.record(
        Outcome(budgets, _report(service, budgets, levels), _evidence(budgets, service))
    )


def _budgets(
    batch: PredictionBatch, levels: ServiceLevels, now: datetime
) -> tuple[ErrorBudget, ...]:
    names = np.array([str(name).partition("#")[0] for name in batch.ids])
    _, first = np.unique(names, return_index=True)
    at = batch.at[first].astype("datetime64[us]").astype(np.float64) / 1e6
    age_s = np.maximum(now.timestamp() - at, 0.0)
    is_error = np.asarray(batch.fields["status"])[first].astype(np.int64) >= 500
    total_ms = np.asarray(batch.fields["total_ms"])[first].astype(np.float64)
    is_slow = total_ms > levels.latency_ms
    return (
        error_budget("availability", levels.availability, age_s, is_error, levels=levels),
        error_budget("latency", levels.latency_ratio, age_s, is_slow, levels=levels),
    )


def _report(service: str, budgets: tuple[ErrorBudget, ...], levels: ServiceLevels) -> Report:
    left = " and ".join(f"{max(b.left_ratio, 0):.0%} of its {b.promise} budget" for b in budgets)
    return Report(
        skill=_SKILL,
        title=f"Error budgets of {service}",
        summary=f"{service} has {left} left, counted from {budgets[0].requests:,} logged requests.",
        measures=tuple(
            Measure(name=f"{b.promise}_budget_left", value=b.left_ratio, unit="ratio")
            for b in budgets
        ),
        findings=tuple(finding for budget in budgets for finding in _findings(budget)),
        tables=tuple(_table(budget) for budget in budgets),
        details={
            "levels": levels.model_dump(mode="json"),
            "budgets": [budget.model_dump(mode="json") for budget in budgets],
        },
    )


def _findings(budget: ErrorBudget) -> list[Finding]:
    if budget.firing:
        advice = "look at the newest rollout, and at `fairlead observe debug latency`"
        return [
            Finding(level="alert", text=f"{budget.promise} burns: {rule}", advice=advice)
            for rule in budget.firing
        ]
    if budget.left_ratio < 0:
        text = f"the {budget.promise} budget is overspent"
        return [Finding(level="warning", text=text, advice="hold rollouts until it recovers")]
    return [Finding(level="good", text=f"no {budget.promise} alert would fire now")]


def _table(budget: ErrorBudget) -> Table:
    def row(rate: BurnRate) -> tuple[str, int, int, float]:
        return (span(rate.window_s), rate.requests, rate.bad, round(rate.burn_rate, 3))

    return Table(
        title=f"Burn rates, {budget.promise} {budget.target:g}",
        columns=("window", "requests", "bad", "burn rate"),
        rows=tuple(row(rate) for rate in budget.burn_rates),
    )


def _evidence(budgets: tuple[ErrorBudget, ...], service: str) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            metric=f"{budget.promise}_budget_left_ratio",
            value=budget.left_ratio,
            unit="ratio",
            method="bad requests in the prediction log over the allowed ones",
            subject=service,
            sample_size=budget.requests,
            skill=_SKILL,
            labels={"service": service},
        )
        for budget in budgets
    )
