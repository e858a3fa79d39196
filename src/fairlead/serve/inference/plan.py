"""What a server shall do, and what surrounds the process that does it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import Endpoint
from fairlead.core.workspace import Workspace
from fairlead.serve.inference.accepting import OpenCounts
from fairlead.serve.inference.bus import Bus, LocalBus
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.model_versions import ModelSource
from fairlead.serve.inference.security.config import SecurityConfig
from fairlead.serve.inference.security.opening import read_optional

__all__ = ["ServerPlan", "Site", "document_of", "plan_of"]


@dataclass(frozen=True)
class ServerPlan:
    """What a server shall serve, and how it is surrounded.

    Attributes:
        sources: The bundles to serve, all with the names of their models; the first one's is the
            default model, and gives the service its name.
        config: Settings of serving.
        workspace: Where it records itself and its predictions.
        candidate: A bundle that shares the traffic of the default model.
        trust: Whether code that came with a model may run.
        cpu_limit: CPUs to plan for; None asks the machine.
        admin_token: Opens the control endpoints; None makes one up.
        is_token_chosen: Whether somebody chose that token; false when it was made up.
        until_stdin_closes: Whether the end of standard input stops the server.
    """

    sources: tuple[ModelSource, ...]
    config: ServingConfig
    workspace: Workspace
    candidate: Bundle | None = None
    trust: bool = False
    cpu_limit: int | None = None
    admin_token: str | None = field(default=None, repr=False)
    is_token_chosen: bool = False
    until_stdin_closes: bool = False

    @cached_property
    def security(self) -> SecurityConfig:
        """What the security file says.

        Raises:
            ConfigError: It cannot be read.
        """
        return read_optional(self.config.security)

    @property
    def name(self) -> str:
        """Name of the service, and of its default model."""
        return str(self.sources[0].name)


async def _go_on(_: Endpoint) -> None:
    """Need nothing before the first request."""


@dataclass(frozen=True)
class Site:
    """What surrounds the event loop that serves: alone, or as one of several workers.

    Attributes:
        listener: Listening socket.
        place: The endpoint as it is told to others, its arms left out.
        grpc_listener: Listening socket for gRPC, or None.
        bus: Reaches the other workers.
        number: Which of the workers this is, from 0.
        is_replacement: Whether it takes the place of a worker that ended while others went on.
        limits: File of the shared rate limits, or None for one worker.
        counts: How many connections each worker holds, or None for one worker.
        grpc_counts: The same for gRPC.
        outcomes: File of the outcomes that outlives this worker, or None for one worker.
        before_listening: Awaited with the endpoint once the models are warm.
        on_listening: Called with the endpoint once requests are taken.
        watch_stdin: Calls back in another thread when standard input ends, or None.
    """

    listener: socket.socket
    place: Endpoint
    grpc_listener: socket.socket | None = None
    bus: Bus = field(default_factory=LocalBus)
    number: int = 0
    is_replacement: bool = False
    limits: int | None = None
    counts: OpenCounts | None = None
    grpc_counts: OpenCounts | None = None
    outcomes: int | None = None
    before_listening: Callable[[Endpoint], Awaitable[None]] = _go_on
    on_listening: Callable[[Endpoint], None] = lambda _: None
    watch_stdin: Callable[[Callable[[], object]], None] | None = None


def document_of(plan: ServerPlan, *, endpoint: Endpoint, cpus: int) -> dict[str, Any]:
    """Return what a worker must know of the plan, as JSON.

    Args:
        plan: What the service serves, with its admin token.
        endpoint: Where it answers.
        cpus: CPUs that one worker may use.
    """
    return {
        "sources": [[source.name, str(source.path)] for source in plan.sources],
        "config": plan.config.model_dump(mode="json", exclude_defaults=True),
        "home": str(plan.workspace.root),
        "database_url": plan.workspace.database_url,
        "candidate": None if plan.candidate is None else str(plan.candidate.path),
        "trust": plan.trust,
        "cpus": cpus,
        "admin_token": plan.admin_token,
        "is_token_chosen": plan.is_token_chosen,
        "endpoint": endpoint.model_dump(mode="json"),
    }


def plan_of(document: dict[str, Any]) -> ServerPlan:
    """Return the plan that `document_of` wrote down."""
    candidate = document["candidate"]
    return ServerPlan(
        sources=tuple(ModelSource(name, Path(path)) for name, path in document["sources"]),
        config=ServingConfig.parse(document["config"]),
        workspace=Workspace(Path(document["home"]), document["database_url"]),
        candidate=None if candidate is None else Bundle.open(candidate),
        trust=document["trust"],
        cpu_limit=document["cpus"],
        admin_token=document["admin_token"],
        is_token_chosen=document["is_token_chosen"],
    )
