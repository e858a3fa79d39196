"""The canary itself: sets the share of the candidate, watches, and decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from fairlead.core.decision import Decision
from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import ConflictError
from fairlead.measure.sequential import e_value
from fairlead.serve.rollout.agreement import Agreement
from fairlead.serve.rollout.config import RolloutConfig
from fairlead.serve.rollout.journal import RolloutState
from fairlead.serve.rollout.methods import METHODS
from fairlead.serve.rollout.target import Observation, RolloutTarget, Traffic

if TYPE_CHECKING:
    from fairlead.backends.endpoint import OutcomePage, RequestOutcome

__all__ = ["BASELINE", "CANDIDATE", "Canary", "split_for"]

BASELINE, CANDIDATE = "baseline", "candidate"
_PAGE = 2000
_SETTLE_S = 1.0
_CLOCK_SLACK_S = 0.05

Action = Literal["promote", "roll-back", "hold"]


def split_for(weight: float) -> TrafficSplit:
    """Return the traffic split that gives the candidate this share, 0 to 1."""
    return TrafficSplit(weights={BASELINE: 1.0 - weight, CANDIDATE: weight})


class Canary:
    """One rollout while it runs."""

    def __init__(
        self,
        state: RolloutState,
        config: RolloutConfig,
        *,
        client: RolloutTarget,
        traffic: Traffic,
        has_labels: bool,
        is_regression: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Start, or go on from a state."""
        self.state = state
        self.config = config
        self.agreement = Agreement()
        self._client = client
        self._traffic = traffic
        self._now = now
        self._before_s = state.seconds
        self._began = now()
        self._shares: list[tuple[float, float, float]] = []
        self.watch = METHODS[config.method](
            config,
            n_labelled=traffic.n_labelled,
            has_labels=has_labels,
            is_regression=is_regression,
            state=state.watch or None,
        )

    def begin(self) -> None:
        """Give the candidate its first share; what was answered before does not count."""
        if self.state.after == 0:
            page = self._client.outcomes(after=0, limit=_PAGE)
            while page.outcomes:
                page = self._client.outcomes(after=page.next, limit=_PAGE)
            self._update(after=page.next)
        self._set_weight(self.config.steps[self.state.step])

    def look(self) -> Decision | None:
        """Let requests happen, read what became of them, and decide if it is time."""
        self._traffic.advance()
        self._check_split()
        self._read()
        self._update(
            seconds=self._before_s + self._now() - self._began,
            watch=self.watch.state,
            history=(*self.state.history, self._point()),
        )
        return self._decide()

    def restore(self) -> None:
        """Give all traffic back to the baseline.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        self._set_weight(0.0)

    def finish(self, action: Action, reason: str) -> Decision:
        """Put a decision into force and return it."""
        self._set_weight(1.0 if action == "promote" else 0.0)
        decision = Decision(
            action=action,
            reason=reason,
            baseline=self.state.baseline,
            candidate=self.state.candidate,
            requests=self.state.requests[1],
            guardrails=self.watch.guardrails(),
        )
        self._update(status="decided", decision=decision)
        return decision

    def _update(self, **changes: Any) -> None:  # noqa: ANN401 (fields of the state)
        self.state = self.state.model_copy(update=changes)

    def _point(self) -> tuple[float, float, float]:
        total = float(sum(self.state.requests))
        return (total, self.state.weight, e_value(self.watch.harm_log_e))

    def _set_weight(self, weight: float) -> None:
        before = self._now()
        self._client.set_traffic(split_for(weight))
        self._shares.append((before, self._now(), weight))
        self._update(weight=weight, step_requests=0)

    def _check_split(self) -> None:
        found = self._client.traffic().weights.get(CANDIDATE, 0.0)
        if abs(found - self.state.weight) > 1e-6:
            raise ConflictError(
                f"someone else gave the candidate {found:.0%} of the traffic "
                f"while the rollout had set {self.state.weight:.0%}",
                hint="let only one hand steer the traffic, then start the rollout again",
            )

    def _read(self) -> None:
        """Read outcomes until none is left; replayed answers are waited for a moment."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            page = self._client.outcomes(after=self.state.after, limit=_PAGE)
            self._take(page)
            if page.outcomes:
                continue
            if self._traffic.pending == 0 or time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def _take(self, page: OutcomePage) -> None:
        counts = list(self.state.requests)
        in_step = self.state.step_requests
        for outcome in page.outcomes:
            share = self._share_of(outcome)
            if share is None or outcome.arm not in (BASELINE, CANDIDATE):
                continue
            is_candidate = outcome.arm == CANDIDATE
            judgement = self._traffic.judge(outcome)
            self.watch.observe(Observation(outcome, is_candidate, *share, judgement))
            self.agreement.observe(judgement, is_candidate=is_candidate)
            counts[int(is_candidate)] += 1
            in_step += int(is_candidate)
            if self.watch.is_harmful:
                break
        self._update(
            after=page.next,
            requests=(counts[0], counts[1]),
            step_requests=in_step,
            missed=self.state.missed + page.missed,
        )

    def _share_of(self, outcome: RequestOutcome) -> tuple[float, float] | None:
        """Return the least and largest share the candidate can have had for this request.

        The arm is drawn when a request arrives, and its outcome is known when it ends: around a
        change of the share both values are possible. Each test takes the one that favours it
        least.
        """
        if self._traffic.is_replayed:
            return self.state.weight, self.state.weight
        start = outcome.at - outcome.total_ms / 1e3
        found = []
        for index, (begun, _, weight) in enumerate(self._shares):
            is_last = index + 1 == len(self._shares)
            ended = float("inf") if is_last else self._shares[index + 1][1]
            if begun - _CLOCK_SLACK_S <= start <= ended + _CLOCK_SLACK_S:
                found.append(weight)
        if not found or start < self._shares[0][1]:
            return None
        return min(found), max(found)

    def _decide(self) -> Decision | None:
        if self.watch.is_harmful:
            return self.finish("roll-back", self._harm_reason())
        if self.watch.is_split_broken:
            return self.finish("hold", self._split_reason())
        is_step_done = self.state.step_requests >= self.config.min_requests_per_step
        is_last = self.state.step + 1 == len(self.config.steps)
        if is_step_done and is_last and not self.watch.unsafe:
            return self.finish("promote", "every guardrail metric was shown to be safe")
        if is_step_done and not is_last:
            self._update(step=self.state.step + 1)
            self._set_weight(self.config.steps[self.state.step])
        stop = self._stop_reason(is_last=is_last)
        return self.finish("hold", stop) if stop else None

    def _harm_reason(self) -> str:
        worst = self.watch.worst
        return (
            f"{worst.metric}: {worst.events[1]} of {worst.totals[1]} for the candidate, "
            f"{worst.events[0]} of {worst.totals[0]} for the baseline; "
            f"the evidence of harm reached 1/alpha = {1 / self.config.alpha:g}"
        )

    def _split_reason(self) -> str:
        return (
            f"the candidate answered {self.state.requests[1]} and the baseline "
            f"{self.state.requests[0]} requests, which does not fit the shares that were set: "
            "answers get lost on one side, so the arms cannot be compared"
        )

    def _stop_reason(self, *, is_last: bool) -> str:
        total = sum(self.state.requests)
        unsafe = self.watch.unsafe
        names = ", ".join(guard.metric for guard in unsafe)
        if total >= self.config.max_requests:
            return f"after {total} requests not yet shown to be safe: {names or 'too few requests'}"
        if self.state.seconds >= self.config.max_seconds:
            seen = f"{total} requests" if total else "no request"
            return f"{seen} in {self.state.seconds:.0f} s; not yet shown to be safe: {names}"
        if is_last and unsafe and not any(guard.can_learn for guard in unsafe):
            return f"every labelled row was answered by both arms and {names} stays undecided"
        return ""
