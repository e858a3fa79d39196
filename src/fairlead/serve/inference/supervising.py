"""Serving with several workers, seen from the process that people start."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

from fairlead.backends.cpus import usable_cpus
from fairlead.core.endpoint import Endpoint
from fairlead.serve.inference.plan import ServerPlan, document_of
from fairlead.serve.inference.stdin_watch import watch_stdin
from fairlead.serve.inference.workers import Supervision, Supervisor

__all__ = ["supervise"]


def supervise(
    plan: ServerPlan,
    place: Endpoint,
    listener: socket.socket,
    publish: Callable[[Endpoint], None],
    *,
    grpc_listener: socket.socket | None = None,
) -> None:
    """Serve with several workers until SIGTERM, SIGINT or the end of standard input; then drain.

    Args:
        plan: What to serve, with its admin token.
        place: The endpoint, its arms left out.
        listener: Listening socket that all workers share.
        publish: Called with the endpoint once every worker is warm.
        grpc_listener: Another one, for gRPC; None where it is not served.

    Raises:
        FairleadError: A worker refused to start, or none can be kept alive.
    """
    config = plan.config
    cpus = max(1, usable_cpus(plan.cpu_limit) // config.workers)

    def ready(joined: dict[str, Any]) -> None:
        publish(place.model_copy(update={name: joined[name] for name in ("arms", "bundles")}))

    work = Supervision(
        n_workers=config.workers,
        plan=document_of(plan, endpoint=place, cpus=cpus),
        listeners={"http": listener} | ({"grpc": grpc_listener} if grpc_listener else {}),
        hang_timeout_s=config.worker_hang_s,
        drain_timeout_s=config.drain_timeout_s,
        on_ready=ready,
    )

    async def live() -> None:
        loop = asyncio.get_running_loop()
        supervisor = Supervisor(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.drain)
        if plan.until_stdin_closes:
            watch_stdin(lambda: loop.call_soon_threadsafe(supervisor.drain))
        await supervisor.run()

    asyncio.run(live())
