"""What people read of a rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.core.decision import Decision
from fairlead.core.evidence import Evidence
from fairlead.core.report import Finding, Measure, Plot, Report, Series, Table, Verdict
from fairlead.measure.sequential import e_value
from fairlead.serve.rollout.canary import Canary
from fairlead.serve.rollout.card import CARD
from fairlead.serve.rollout.journal import RolloutState
from fairlead.serve.rollout.methods.conditional_betting import ErrorGuard, LatencyGuard

__all__ = ["evidence_of", "refusal_report", "report_of", "state_report"]

_METHOD = "conditional betting e-process"
_TITLES = {"promote": "Promoted", "roll-back": "Rolled back", "hold": "On hold"}
_MOST_POINTS = 200


def report_of(state: RolloutState, canary: Canary, decision: Decision) -> Report:
    """Return the report of a finished rollout."""
    verdict: Verdict = "done" if decision.action == "promote" else "refused"
    return Report(
        skill=CARD.id,
        title=f"{_TITLES[decision.action]}: {state.service}",
        summary=f"{_TITLES[decision.action]} after {decision.requests} requests to the "
        f"candidate and {state.requests[0]} to the baseline: {decision.reason}.",
        verdict=verdict,
        measures=_measures(state, canary),
        findings=_findings(state, canary, decision),
        tables=(_guard_table(decision),),
        plots=_plots(state, canary.config.alpha),
        details={"decision": decision.model_dump(mode="json"), "rollout": state.id},
    )


def refusal_report(service: str, decision: Decision, reasons: Sequence[str]) -> Report:
    """Return the report of a rollout that gave the candidate no request at all."""
    return Report(
        skill=CARD.id,
        title=f"Refused: {service}",
        summary=f"The candidate got no traffic: {decision.reason}.",
        verdict="refused",
        findings=tuple(
            Finding(
                level="alert",
                text=text,
                advice="make the candidate again within its budget, or, if you know better, "
                "give `--set comparison=ignored`",
            )
            for text in reasons
        ),
        details={"decision": decision.model_dump(mode="json")},
    )


def state_report(state: RolloutState, *, is_running: bool) -> Report:
    """Return the report of a rollout as it is remembered."""
    if state.decision is not None:
        text = f"{_TITLES[state.decision.action]}: {state.decision.reason}"
    elif is_running:
        text = f"under way at {state.weight:.0%} for the candidate"
    elif state.status == "aborted":
        text = "aborted by hand; the baseline has all traffic"
    else:
        text = f"cut short at {state.weight:.0%} ({state.problem or 'the process ended'})"
    findings: tuple[Finding, ...] = ()
    if state.decision is None and not is_running and state.status != "aborted":
        advice = (
            "give the same command again to go on, or end it with "
            f"`fairlead serve rollout abort --service {state.service}`"
        )
        findings = (Finding(level="warning", text="nobody watches this rollout", advice=advice),)
    guards = () if state.decision is None else (_guard_table(state.decision),)
    return Report(
        skill=CARD.id,
        title=f"Rollout of {state.service}",
        summary=f"{text}.",
        findings=findings,
        measures=(
            Measure(name="baseline_requests", value=state.requests[0], unit="count"),
            Measure(name="candidate_requests", value=state.requests[1], unit="count"),
            Measure(name="candidate_share", value=state.weight, unit="ratio"),
        ),
        tables=guards,
        plots=_plots(state, float(state.settings["alpha"])),
        details={**state.model_dump(mode="json", exclude={"watch"}), "is_running": is_running},
    )


def evidence_of(state: RolloutState, canary: Canary, decision: Decision) -> tuple[Evidence, ...]:
    """Return the measurements that are worth keeping, about the candidate's digest."""
    labels = {"baseline": state.baseline, "service": state.service, "arm": "candidate"}
    found = [
        Evidence(
            metric=f"rollout_{guard.metric}_ratio",
            value=guard.candidate_events / guard.candidate_total,
            unit="ratio",
            method=_METHOD,
            subject=state.candidate,
            sample_size=guard.candidate_total,
            skill=CARD.id,
            labels=labels,
        )
        for guard in decision.guardrails
        if guard.candidate_total
    ]
    found.append(
        Evidence(
            metric="rollout_harm_e_value",
            value=e_value(canary.watch.harm_log_e),
            unit="1",
            method=_METHOD,
            subject=state.candidate,
            sample_size=decision.requests,
            skill=CARD.id,
            labels={**labels, "action": decision.action},
        )
    )
    return tuple(found)


def _measures(state: RolloutState, canary: Canary) -> tuple[Measure, ...]:
    agreement = canary.agreement
    found = [
        Measure(name="candidate_requests", value=state.requests[1], unit="count"),
        Measure(name="baseline_requests", value=state.requests[0], unit="count"),
        Measure(
            name="harm_e_value",
            value=e_value(canary.watch.harm_log_e),
            note=f"rolls back at {1 / canary.config.alpha:g}",
        ),
    ]
    for guard in canary.watch.guards:
        if isinstance(guard, ErrorGuard):
            found.append(
                Measure(
                    name="candidate_error_upper_bound",
                    value=guard.upper_bound,
                    unit="ratio",
                    note="holds at every moment of the rollout at once",
                )
            )
    if agreement.pairs:
        ratio = agreement.differing / agreement.pairs
        found.append(Measure(name="prediction_disagreement", value=ratio, unit="ratio"))
    if agreement.total_variation is not None:
        found.append(
            Measure(
                name="prediction_share_distance",
                value=agreement.total_variation,
                unit="ratio",
                note="total variation between the classes predicted by the arms",
            )
        )
    return tuple(found)


def _guard_table(decision: Decision) -> Table:
    rows = [
        (
            guard.metric,
            f"{guard.baseline_events} of {guard.baseline_total}",
            f"{guard.candidate_events} of {guard.candidate_total}",
            _short(guard.harm_e_value),
            _short(guard.safe_e_value),
        )
        for guard in decision.guardrails
    ]
    return Table(
        title="Guardrail metrics",
        columns=("metric", "baseline", "candidate", "evidence of harm", "evidence of safety"),
        rows=tuple(rows),
    )


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _findings(state: RolloutState, canary: Canary, decision: Decision) -> tuple[Finding, ...]:
    found = [_headline(decision)]
    if decision.action == "hold":
        unsafe = canary.watch.unsafe
        found += [Finding(level="warning", text=_need(canary, g.metric)) for g in unsafe]
    if state.missed:
        found.append(
            Finding(
                level="warning",
                text=f"the server forgot {state.missed} outcomes before they were read",
                advice="look more often with a smaller check_seconds",
            )
        )
    agreement = canary.agreement
    if agreement.pairs:
        text = f"the arms predicted differently on {agreement.differing} of {agreement.pairs} rows"
        if agreement.largest_gap:
            text += f", by at most {agreement.largest_gap:.4g}"
        found.append(Finding(level="info", text=text))
    found += _latency_findings(canary)
    return tuple(found)


def _headline(decision: Decision) -> Finding:
    if decision.action == "promote":
        return Finding(
            level="good",
            text="the candidate has all traffic",
            advice="keep the baseline bundle until the next release, to go back to",
        )
    text = "the baseline has all traffic"
    if decision.action == "roll-back":
        advice = "mend the candidate, and give it a new rollout"
        return Finding(level="alert", text=text, advice=advice)
    advice = "send more requests, label more rows, or widen what counts as safe"
    return Finding(level="warning", text=f"{text}: nothing was decided", advice=advice)


def _need(canary: Canary, metric: str) -> str:
    config = canary.config
    if metric == "quality":
        needed = math.ceil(
            (math.log(1 / config.alpha) + math.log(6))
            / math.log1p(0.8 * config.max_quality_drop_ratio / (1 - config.max_quality_drop_ratio))
        )
        return (
            f"quality is not shown to fall by less than {config.max_quality_drop_ratio:.1%}: that "
            f"takes about {needed} labelled rows if the arms agree on all of them, more otherwise"
        )
    if metric == "errors":
        return (
            f"errors are not shown to be below {config.absolute_failure_tolerance:.1%}, nor below "
            f"{config.margin:g} times those of the baseline"
        )
    return (
        f"latency is not shown to exceed the baseline's p50 and p90, plus "
        f"{config.latency_tolerance_ratio:.0%} and {config.latency_tolerance_ms:g} ms, less than "
        f"{config.margin:g} times as often"
    )


def _latency_findings(canary: Canary) -> list[Finding]:
    for guard in canary.watch.guards:
        if isinstance(guard, LatencyGuard) and guard.thresholds is not None:
            p50, p90 = guard.thresholds[:2]
            text = f"latency thresholds of the baseline: p50 {p50:.3g} ms, p90 {p90:.3g} ms"
            return [Finding(level="info", text=text)]
    return []


def _plots(state: RolloutState, alpha: float) -> tuple[Plot, ...]:
    points = state.history[:: max(1, len(state.history) // _MOST_POINTS)]
    if not points:
        return ()
    requests = tuple(point[0] for point in points)
    logs = tuple(math.log10(max(point[2], 1e-12)) for point in points)
    return (
        Plot(
            title="Evidence of harm",
            kind="line",
            x_label="requests",
            y_label="log10 e-value",
            series=(Series(name="joint", x=requests, y=logs),),
            marks=(("roll back", math.log10(1 / alpha)),),
        ),
        Plot(
            title="Share of the candidate",
            kind="line",
            x_label="requests",
            y_label="share",
            series=(Series(name="candidate", x=requests, y=tuple(p[1] for p in points)),),
        ),
    )
