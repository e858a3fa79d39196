"""What every transport needs to know of a service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairlead.core.endpoint import Endpoint
from fairlead.serve.inference.bus import Bus, LocalBus
from fairlead.serve.inference.dataplane import Dataplane
from fairlead.serve.inference.metrics import ServingMetrics
from fairlead.serve.inference.outcomes import Outcomes
from fairlead.serve.inference.repository import Repository
from fairlead.serve.inference.traffic import Traffic
from fairlead.serve.inference.uses import Uses

if TYPE_CHECKING:
    from fairlead.serve.inference.security.guard import Guard

__all__ = ["Service"]


@dataclass(slots=True)
class Service:
    """What a transport needs to know.

    Attributes:
        repository: Finds what answers the requests of a model.
        traffic: Shares the default model's requests between its arms, loaded or not.
        outcomes: What the control endpoints read.
        metrics: What `/metrics` shows, or None when measuring is off.
        admin_token: Opens the control endpoints.
        bus: Reaches every worker of the service; changes of its state go through it.
        number: Which of the workers this is, from 0.
        guard: Admits requests; None leaves all but administration open.
        endpoint: Where the service answers; set once it listens.
        is_draining: Whether it is about to stop.
        uses: What each version of each model was asked.
        n_connections: Returns how many clients are connected to this worker.
        busy_poll_s: How long a lone client's next request is looked for; see `BusyPoll`.
    """

    repository: Repository
    traffic: Traffic
    outcomes: Outcomes
    metrics: ServingMetrics | None
    admin_token: str = field(repr=False)
    bus: Bus = field(default_factory=LocalBus)
    number: int = 0
    guard: Guard | None = None
    endpoint: Endpoint | None = None
    is_draining: bool = False
    uses: Uses = field(default_factory=Uses)
    n_connections: Callable[[], int] = lambda: 0
    busy_poll_s: float = 0.0

    @property
    def dataplane(self) -> Dataplane:
        """Answers the requests of the default model."""
        return self.repository.dataplane()

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests: it does not stop, and the default model answers."""
        return not self.is_draining and self.repository.is_ready()
