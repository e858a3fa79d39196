"""A server with two arms that exists only in memory; steered like a real one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fairlead.backends.endpoint import OutcomePage, RequestOutcome
from fairlead.core.endpoint import Endpoint, TrafficSplit
from fairlead.core.errors import EndpointError
from fairlead.serve.rollout import Judgement

ENDPOINT = Endpoint(
    service="wines",
    url="http://127.0.0.1:1",
    pid=7,
    arms={"baseline": "sha256:b", "candidate": "sha256:c"},
)


@dataclass
class FakeArm:
    """How one arm behaves: shares of failing and wrong answers, and how slow it is."""

    error_ratio: float = 0.0
    wrong_ratio: float = 0.0
    median_ms: float = 10.0
    drops_ratio: float = 0.0
    nan_ratio: float = 0.0


@dataclass
class FakeServer:
    """Implements `RolloutTarget` and answers requests by the clock of the test."""

    baseline: FakeArm = field(default_factory=FakeArm)
    candidate: FakeArm = field(default_factory=FakeArm)
    seed: int = 0
    lost_after: int | None = None
    """Requests after which the server can no longer be reached."""

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.split = TrafficSplit(weights={"baseline": 1.0, "candidate": 0.0})
        self.splits = []
        self.ring = []
        self.now = 1000.0

    def clock(self):
        return self.now

    def traffic(self):
        self._reach()
        return self.split

    def set_traffic(self, split):
        self._reach()
        self.split = split
        self.splits.append(split.weights["candidate"])
        return split

    def outcomes(self, after=0, limit=1000):
        self._reach()
        page = tuple(self.ring[after : after + limit])
        return OutcomePage(page, after + len(page), 0)

    def answer(self, request_id):
        """Serve one request; 10 ms pass between two requests."""
        self.now += 0.01
        is_candidate = self.rng.random() < self.split.weights["candidate"]
        arm = self.candidate if is_candidate else self.baseline
        if self.rng.random() < arm.drops_ratio:
            return
        status = 500 if self.rng.random() < arm.error_ratio else 200
        self.ring.append(
            RequestOutcome(
                seq=len(self.ring) + 1,
                id=request_id,
                arm="candidate" if is_candidate else "baseline",
                version="v",
                status=status,
                run_ms=1.0,
                total_ms=float(arm.median_ms * self.rng.lognormal(0, 0.3)),
                prediction=1.0 if status == 200 else None,
                at=self.now,
            )
        )

    def _reach(self):
        if self.lost_after is not None and len(self.ring) >= self.lost_after:
            raise EndpointError("gone", hint="start it again")


class FakeTraffic:
    """Replays rows against a `FakeServer`, with a label for each when asked."""

    is_replayed = True
    pending = 0
    lost = 0

    def __init__(self, server, *, block=200, rows=0, on_advance=None):
        self._server = server
        self._block = block
        self._rows = rows
        self._sent = 0
        self._on_advance = on_advance
        self._rng = np.random.default_rng(99)
        # Whether an arm gets a row wrong is a property of the row, not of the request.
        self._hard = self._rng.random(max(rows, 1))

    @property
    def n_labelled(self):
        return self._rows

    def advance(self):
        if self._on_advance is not None:
            self._on_advance(self)
        for _ in range(self._block):
            self._server.answer(f"r-{self._sent}")
            self._sent += 1
        return self._block

    def judge(self, outcome):
        arm = getattr(self._server, outcome.arm)
        is_finite = not self._rng.random() < arm.nan_ratio
        if not self._rows:
            return Judgement(is_finite=is_finite)
        row = int(outcome.id[2:]) % self._rows
        loss = float(self._hard[row] < arm.wrong_ratio)
        return Judgement(is_finite=is_finite, row=row, loss=loss, prediction=str(loss))
