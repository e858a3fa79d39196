"""What people read of load tests and capacity plans."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Series, Table
from fairlead.measure.simulation import Policy
from fairlead.serve.scaling.card import CARD
from fairlead.serve.scaling.config import LoadConfig, ScalingConfig
from fairlead.serve.scaling.methods import Search
from fairlead.serve.scaling.plan import LoadStep, LoadTest, PolicyForecast, ScalingPlan

__all__ = ["load_outcome", "plan_evidence", "plan_report"]

_OPEN_LOOP = "open loop, Poisson arrivals, latency from the intended start"
_SIMULATION = "trace-driven discrete-event simulation"


def plan_report(
    plan: ScalingPlan, searches: Mapping[Policy, Search], config: ScalingConfig
) -> Report:
    """Return the report of a capacity plan."""
    is_met = plan.replicas is not None
    return Report(
        skill=CARD.id,
        title=f"Replicas for {plan.target_rps:g} rps at p99 {plan.slo_p99_ms:g} ms",
        summary=_summary(plan, config),
        verdict="done" if is_met else "refused",
        measures=_plan_measures(plan) if is_met else (),
        findings=_plan_findings(plan, config),
        tables=(_policy_table(plan.policies),),
        plots=_plan_plots(searches, config.slo_p99_ms),
        details={"plan": plan.model_dump(mode="json")},
    )


def _summary(plan: ScalingPlan, config: ScalingConfig) -> str:
    if plan.replicas is None:
        return (
            f"No number of replicas up to {config.max_replicas} keeps p99 under "
            f"{plan.slo_p99_ms:g} ms at {plan.target_rps:g} rps with {plan.policy}."
        )
    return (
        f"{_count(plan.replicas)} with {plan.policy} for {plan.target_rps:g} rps and a p99 under "
        f"{plan.slo_p99_ms:g} ms: p99 {plan.p99_ms:.3g} ms at "
        f"{plan.utilisation:.0%} utilisation; run {plan.replicas_with_spare} so that "
        f"{config.spare_replicas} may fail."
    )


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


def _plan_measures(plan: ScalingPlan) -> tuple[Measure, ...]:
    return (
        Measure(name="replicas", value=plan.replicas or 0, unit="count"),
        Measure(name="replicas_with_spare", value=plan.replicas_with_spare or 0, unit="count"),
        Measure(name="latency_p50_ms", value=plan.p50_ms, unit="ms"),
        Measure(
            name="latency_p99_ms",
            value=plan.p99_ms,
            unit="ms",
            ci_low=plan.p99_low_ms,
            ci_high=plan.p99_high_ms,
            note="range over resampled service times",
        ),
        Measure(name="latency_p99_with_spare_ms", value=plan.p99_with_spare_ms, unit="ms"),
        Measure(name="utilisation", value=plan.utilisation, unit="ratio"),
        Measure(name="mean_service_ms", value=plan.mean_service_ms, unit="ms"),
    )


def _plan_findings(plan: ScalingPlan, config: ScalingConfig) -> tuple[Finding, ...]:
    found = []
    if plan.replicas is None:
        found.append(
            Finding(
                level="alert",
                text=f"a request takes {plan.mean_service_ms:.3g} ms on average without any queue, "
                "and more replicas do not make a single request faster",
                advice="make the model faster (`fairlead optimize quantize`), or relax the SLO",
            )
        )
    elif plan.p99_high_ms > plan.slo_p99_ms:
        found.append(
            Finding(
                level="warning",
                text=f"with other service times of the same kind p99 reaches "
                f"{plan.p99_high_ms:.3g} ms",
                advice="measure more service times, or add a replica",
            )
        )
    best = min((p for p in plan.policies if p.replicas), key=_replicas_of, default=None)
    if best is not None and plan.replicas is not None and _replicas_of(best) < plan.replicas:
        found.append(
            Finding(
                level="info",
                text=f"{best.policy} would need {best.replicas} instead of {plan.replicas}",
                advice=f"balance by {best.policy} if your load balancer can",
            )
        )
    if plan.service_samples < 2000:
        found.append(
            Finding(
                level="info",
                text=f"{plan.service_samples} service times are behind this; the tail is coarse",
                advice="measure 2,000 or more before you order machines",
            )
        )
    return tuple(found) + _rule_of_thumb(plan, config)


def _rule_of_thumb(plan: ScalingPlan, config: ScalingConfig) -> tuple[Finding, ...]:
    busy = plan.target_rps / 1e3 * plan.mean_service_ms / config.slots_per_replica
    thumb = math.ceil(busy / 0.7)
    if plan.replicas is None or thumb == plan.replicas:
        return ()
    return (Finding(level="info", text=f"the rule of 70 % utilisation would say {thumb}"),)


def _replicas_of(forecast: PolicyForecast) -> int:
    return forecast.replicas or 0


def _policy_table(policies: tuple[PolicyForecast, ...]) -> Table:
    rows = tuple(
        (
            item.policy,
            item.replicas,
            round(item.p50_ms, 2) if item.replicas else None,
            round(item.p99_ms, 2) if item.replicas else None,
            round(item.utilisation, 3) if item.replicas else None,
        )
        for item in policies
    )
    return Table(
        title="Policies",
        columns=("policy", "replicas", "p50 ms", "p99 ms", "utilisation"),
        rows=rows,
    )


def _plan_plots(searches: Mapping[Policy, Search], slo_ms: float) -> tuple[Plot, ...]:
    series = []
    for policy, search in searches.items():
        points = [
            (replicas, load.percentile(99))
            for replicas, load in sorted(search.points.items())
            if load.is_stable
        ]
        # Far beyond the SLO the curve only hides what matters.
        shown = [(float(k), p99) for k, p99 in points if p99 <= 10 * slo_ms]
        if shown:
            xs, ys = zip(*shown, strict=True)
            series.append(Series(name=policy, x=xs, y=ys))
    if not series:
        return ()
    return (
        Plot(
            title="p99 latency by replicas",
            kind="line",
            x_label="replicas",
            y_label="p99 ms",
            series=tuple(series),
            marks=(("SLO", slo_ms),),
        ),
    )


def plan_evidence(plan: ScalingPlan, subject: str) -> tuple[Evidence, ...]:
    """Return the measurements behind a plan and its forecast."""
    sample = {"subject": subject, "skill": CARD.id, "sample_size": plan.service_samples}
    found = [
        Evidence(
            metric="service_time_mean_ms",
            value=plan.mean_service_ms,
            unit="ms",
            method="one request after another",
            **sample,
        )
    ]
    if plan.replicas is not None:
        labels = {"policy": plan.policy, "target_rps": f"{plan.target_rps:g}"}
        found += [
            Evidence(
                metric="replicas_needed",
                value=plan.replicas,
                unit="count",
                method=_SIMULATION,
                labels={**labels, "slo_p99_ms": f"{plan.slo_p99_ms:g}"},
                **sample,
            ),
            Evidence(
                metric="latency_p99_forecast_ms",
                value=plan.p99_ms,
                unit="ms",
                method=_SIMULATION,
                ci_low=plan.p99_low_ms,
                ci_high=plan.p99_high_ms,
                labels=labels,
                **sample,
            ),
        ]
    return tuple(found)


def load_outcome(test: LoadTest, config: LoadConfig, subject: str) -> Outcome[LoadTest]:
    """Return a load test with its report; refused when even the lowest rate was too much."""
    report = Report(
        skill=CARD.id,
        title=f"Load test of {test.service}",
        summary=_load_summary(test),
        verdict="refused" if test.saturation_rps is None else "done",
        measures=_load_measures(test),
        findings=_load_findings(test, config),
        tables=(_step_table(test.steps),),
        plots=(_load_plot(test.steps),),
        details={"load_test": test.model_dump(mode="json")},
    )
    return Outcome(test, report, _load_evidence(test, subject))


def _load_summary(test: LoadTest) -> str:
    if test.saturation_rps is None:
        lowest = min(step.rate_rps for step in test.steps)
        return f"The server did not keep up with {lowest:g} rps."
    more = "is the most it sustains" if test.is_limit_found else "was sustained; more was not tried"
    return f"{test.saturation_rps:.0f} rps {more}."


def _best(test: LoadTest) -> LoadStep | None:
    good = [step for step in test.steps if step.is_sustained]
    return max(good, key=lambda step: step.rate_rps) if good else None


def _load_measures(test: LoadTest) -> tuple[Measure, ...]:
    best = _best(test)
    if best is None:
        return ()
    return (
        Measure(name="sustained_rps", value=best.rate_rps, unit="rps"),
        Measure(name="latency_p50_ms", value=best.p50_ms, unit="ms", note="at that rate"),
        Measure(name="latency_p95_ms", value=best.p95_ms, unit="ms", note="at that rate"),
        Measure(name="latency_p99_ms", value=best.p99_ms, unit="ms", note="at that rate"),
        Measure(name="error_ratio", value=best.error_ratio, unit="ratio", note="at that rate"),
    )


def _load_findings(test: LoadTest, config: LoadConfig) -> tuple[Finding, ...]:
    found = []
    if any(step.is_client_bound for step in test.steps):
        found.append(
            Finding(
                level="warning",
                text="at some rates the load generator itself was too slow",
                advice="the server may take more than this; give the generator a CPU of its own",
            )
        )
    if not test.is_limit_found and config.search:
        found.append(
            Finding(
                level="info",
                text="the search ended before the server gave in",
                advice="allow more with max_steps and max_seconds, or start at a higher rate",
            )
        )
    return tuple(found)


def _step_table(steps: tuple[LoadStep, ...]) -> Table:
    rows = tuple(
        (
            round(step.rate_rps, 1),
            round(step.achieved_rps, 1),
            round(step.p50_ms, 2),
            round(step.p95_ms, 2),
            round(step.p99_ms, 2),
            round(step.error_ratio, 4),
            step.is_sustained,
        )
        for step in sorted(steps, key=lambda step: step.rate_rps)
    )
    columns = ("rate rps", "achieved rps", "p50 ms", "p95 ms", "p99 ms", "errors", "kept up")
    return Table(title="Rates", columns=columns, rows=rows)


def _load_plot(steps: tuple[LoadStep, ...]) -> Plot:
    ordered = [s for s in sorted(steps, key=lambda s: s.rate_rps) if math.isfinite(s.p99_ms)]
    rates = tuple(step.rate_rps for step in ordered)
    return Plot(
        title="Latency by rate",
        kind="line",
        x_label="requests per second",
        y_label="ms",
        series=(
            Series(name="p50", x=rates, y=tuple(step.p50_ms for step in ordered)),
            Series(name="p99", x=rates, y=tuple(step.p99_ms for step in ordered)),
        ),
    )


def _load_evidence(test: LoadTest, subject: str) -> tuple[Evidence, ...]:
    best = _best(test)
    if best is None:
        return ()
    common = {
        "method": _OPEN_LOOP,
        "subject": subject,
        "skill": CARD.id,
        "sample_size": best.requests,
        "labels": {"service": test.service, "rate_rps": f"{best.rate_rps:g}"},
    }
    return (
        Evidence(metric="throughput_saturation_rps", value=best.rate_rps, unit="rps", **common),
        Evidence(metric="latency_p99_ms", value=best.p99_ms, unit="ms", **common),
    )
