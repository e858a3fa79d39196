"""Deployment strategies: let a candidate in, step by step, and decide."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from fairlead.core.bundle import Bundle
from fairlead.core.decision import Decision
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import ConflictError, EndpointError, FairleadError
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Outcome
from fairlead.serve.rollout.canary import BASELINE, CANDIDATE, Canary, split_for
from fairlead.serve.rollout.config import RolloutConfig
from fairlead.serve.rollout.journal import RolloutJournal, RolloutState
from fairlead.serve.rollout.report import evidence_of, refusal_report, report_of
from fairlead.serve.rollout.target import RolloutTarget, Traffic

__all__ = ["refuse_stored", "roll_out", "steer"]

_RESTORE_ATTEMPTS = 3


def roll_out(
    endpoint: Endpoint,
    config: RolloutConfig,
    *,
    client: RolloutTarget,
    traffic: Traffic,
    journal: RolloutJournal,
    has_labels: bool = False,
    is_regression: bool = False,
    progress: Progress | None = None,
    now: Callable[[], float] = time.time,
) -> Outcome[Decision]:
    """Give the candidate a growing share of the traffic until the evidence decides.

    Rolls back as soon as the guardrail metrics show harm, promotes when all of them are shown
    to be safe, and holds when neither happens in the time and requests allowed. Whatever goes
    wrong on the way, the baseline gets all traffic back. A rollout of the same two bundles that
    was cut short goes on where it was.

    Args:
        endpoint: A running server with the arms `baseline` and `candidate`.
        config: How carefully.
        client: Steers the traffic and reads what became of requests.
        traffic: Where the requests come from.
        journal: Remembers the state after every look.
        has_labels: Whether labels of some requests are known.
        is_regression: Whether predictions are numbers rather than classes.
        progress: Hears how far it is.
        now: Seconds since the epoch, by the clock of the server.

    Returns:
        The decision; the report is refused unless the candidate was promoted.

    Raises:
        ConflictError: The service has no candidate, another rollout runs, or someone else
            changed the traffic.
        EndpointError: The server cannot be reached.
        DataError: The server refuses every replayed row.
    """
    _check_arms(endpoint)
    listener = progress or SilentProgress()
    with journal.held():
        state = _resumed(journal, endpoint, config) or _fresh(endpoint, config)
        canary = Canary(
            state,
            config,
            client=client,
            traffic=traffic,
            has_labels=has_labels,
            is_regression=is_regression,
            now=now,
        )
        if state.requests != (0, 0):
            listener.note(f"going on after {sum(state.requests)} requests")
        decision = _guarded(canary, journal, listener)
    return Outcome(
        decision,
        report_of(canary.state, canary, decision),
        evidence_of(canary.state, canary, decision),
    )


def refuse_stored(
    candidate: Bundle | None, config: RolloutConfig, *, service: str, digests: tuple[str, str]
) -> Outcome[Decision] | None:
    """Refuse a candidate whose own comparison with its original speaks against it.

    Args:
        candidate: The bundle that shall get traffic; None when it cannot be read from here.
        config: What the comparison must say.
        service: Name of the service.
        digests: Digests of the baseline and of the candidate.

    Returns:
        The refusal, before any request was sent; None when the rollout may begin.

    Raises:
        BundleError: The comparison cannot be read.
    """
    if candidate is not None:
        made_by = candidate.provenance.made_by
        reasons = config.refusals(candidate.comparison(), made_by=made_by)
    elif config.comparison == "required":
        reasons = ("its comparison cannot be read: the bundle is not on this machine",)
    else:
        reasons = ()
    if not reasons:
        return None
    decision = Decision(
        action="roll-back",
        reason="; ".join(reasons),
        baseline=digests[0],
        candidate=digests[1],
        requests=0,
        guardrails=(),
    )
    return Outcome(decision, refusal_report(service, decision, reasons))


def steer(client: RolloutTarget, journal: RolloutJournal, *, promote: bool) -> RolloutState:
    """End a rollout by hand: all traffic to the candidate, or back to the baseline.

    A running rollout is asked to end at its next look; without one the traffic is set at once.

    Args:
        client: Steers the traffic.
        journal: Holds the state of the rollout.
        promote: True for the candidate, False for the baseline.

    Raises:
        ConflictError: There is no rollout to end.
        EndpointError: The server cannot be reached.
    """
    state = journal.read()
    if state is None:
        raise ConflictError(
            f"there is no rollout of `{journal.service}`",
            hint="start one with `fairlead serve rollout canary`",
        )
    if journal.is_held:
        journal.wish("promote" if promote else "abort")
        return state
    client.set_traffic(split_for(1.0 if promote else 0.0))
    status = "decided" if promote else "aborted"
    ended = state.model_copy(
        update={
            "status": status,
            "weight": 1.0 if promote else 0.0,
            "decision": _by_hand(state) if promote else state.decision,
        }
    )
    journal.write(ended)
    return ended


def _by_hand(state: RolloutState) -> Decision:
    return Decision(
        action="promote",
        reason="promoted by hand",
        baseline=state.baseline,
        candidate=state.candidate,
        requests=state.requests[1],
        guardrails=() if state.decision is None else state.decision.guardrails,
    )


def _check_arms(endpoint: Endpoint) -> None:
    missing = {BASELINE, CANDIDATE} - set(endpoint.arms)
    if missing:
        raise ConflictError(
            f"`{endpoint.service}` has the arms {', '.join(sorted(endpoint.arms)) or 'none'}, "
            f"but a rollout needs {BASELINE} and {CANDIDATE}",
            hint="start it with `fairlead serve start BASELINE --candidate CANDIDATE`",
        )


def _fresh(endpoint: Endpoint, config: RolloutConfig) -> RolloutState:
    return RolloutState(
        id=uuid.uuid4().hex[:12],
        service=endpoint.service,
        baseline=endpoint.arms[BASELINE],
        candidate=endpoint.arms[CANDIDATE],
        settings=config.model_dump(mode="json"),
        pid=endpoint.pid,
    )


def _resumed(
    journal: RolloutJournal, endpoint: Endpoint, config: RolloutConfig
) -> RolloutState | None:
    """Return the state of a rollout of the same bundles that ended without a decision."""
    old = journal.read()
    if old is None or old.status not in ("running", "failed"):
        return None
    if (old.baseline, old.candidate) != (endpoint.arms[BASELINE], endpoint.arms[CANDIDATE]):
        return None
    if old.settings != config.model_dump(mode="json"):
        return None
    changes: dict[str, object] = {"status": "running", "problem": ""}
    if old.pid != endpoint.pid:
        # A new server counts its outcomes from 1, and may be faster or slower than the old one.
        watch = {name: value for name, value in old.watch.items() if name != "latency"}
        changes |= {"pid": endpoint.pid, "after": 0, "watch": watch}
    return old.model_copy(update=changes)


def _guarded(canary: Canary, journal: RolloutJournal, listener: Progress) -> Decision:
    """Run to the decision; after any error or Ctrl-C the baseline has all traffic again."""
    try:
        return _run(canary, journal, listener)
    except BaseException as exc:
        is_stopped = isinstance(exc, KeyboardInterrupt)
        told = str(exc) or type(exc).__name__
        lost = _restore(canary)
        ended = canary.state.model_copy(
            update={
                "status": "running" if is_stopped else "failed",
                "problem": "interrupted" if is_stopped else told,
            }
        )
        journal.write(ended)
        if lost:
            listener.note("the traffic could not be given back to the baseline")
        if lost and isinstance(exc, EndpointError):
            raise EndpointError(
                f"the server was lost during the rollout: {exc.message}; "
                "the traffic could not be given back to the baseline",
                hint="if the server still runs, end the rollout with "
                f"`fairlead serve rollout abort --service {canary.state.service}`",
            ) from exc
        raise


def _restore(canary: Canary) -> bool:
    """Give the traffic back to the baseline; return whether that failed too."""
    for _ in range(_RESTORE_ATTEMPTS):
        try:
            canary.restore()
        except FairleadError:
            # An interrupt in the middle of an exchange leaves a connection that must be closed,
            # which the failed attempt has done.
            continue
        return False
    return True


def _run(canary: Canary, journal: RolloutJournal, listener: Progress) -> Decision:
    config = canary.config
    listener.begin(f"canary at {config.steps[canary.state.step]:.0%}", config.max_requests)
    # Written before the candidate gets its first request: a crash may never leave traffic on a
    # candidate that the journal does not know of.
    journal.write(canary.state)
    canary.begin()
    decision: Decision | None = None
    while decision is None:
        before, step = sum(canary.state.requests), canary.state.step
        decision = canary.look() or _wished(canary, journal)
        journal.write(canary.state)
        listener.advance(sum(canary.state.requests) - before)
        if canary.state.step != step:
            listener.note(f"the candidate now gets {canary.state.weight:.0%} of the requests")
    return decision


def _wished(canary: Canary, journal: RolloutJournal) -> Decision | None:
    wish = journal.take_wish()
    if wish == "promote":
        return canary.finish("promote", "promoted by hand before the evidence was complete")
    if wish == "abort":
        return canary.finish("roll-back", "aborted by hand")
    return None
