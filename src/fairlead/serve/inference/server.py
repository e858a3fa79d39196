"""A server's life: take name and port, load, warm up, publish, serve, drain, say goodbye."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairlead.backends.cpus import usable_cpus
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.backends.server_process import port_error
from fairlead.backends.services import (
    check_service_name,
    forget_service,
    hold_service,
    write_service,
)
from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import Endpoint, TrafficSplit
from fairlead.core.extras import requires
from fairlead.core.workspace import Workspace
from fairlead.serve.inference.arms import Arm, check_same_inputs, open_arm
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.dataplane import Dataplane
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.recording import log_observer
from fairlead.serve.inference.served import Observer
from fairlead.serve.inference.traffic import Traffic

if TYPE_CHECKING:
    from fairlead.serve.inference.rest import Service

__all__ = ["ServerPlan", "run_server"]

_log = logging.getLogger(__name__)
_BACKLOG = 2048


@dataclass(frozen=True)
class ServerPlan:
    """What a server shall serve, and how it is surrounded.

    Attributes:
        bundles: Arm → bundle; `baseline` and, where there is one, `candidate`.
        config: Settings of serving.
        workspace: Where it records itself and its predictions.
        trust: Whether code that came with a model may run.
        cpu_limit: CPUs to plan for; None asks the machine.
        admin_token: Opens the control endpoints; None makes one up.
        until_stdin_closes: Whether the end of standard input stops the server.
    """

    bundles: Mapping[str, Bundle]
    config: ServingConfig
    workspace: Workspace
    trust: bool = False
    cpu_limit: int | None = None
    admin_token: str | None = field(default=None, repr=False)
    until_stdin_closes: bool = False

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.config.name or next(iter(self.bundles.values())).name


def run_server(plan: ServerPlan, on_ready: Callable[[Endpoint], None]) -> None:
    """Serve until SIGTERM, SIGINT or, where asked for, the end of standard input; then drain.

    Args:
        plan: What to serve.
        on_ready: Called once the server answers and is recorded in the workspace.

    Raises:
        PortInUseError: Another process holds the port.
        ConflictError: A server of that name already runs in the workspace.
        SignatureError: The candidate takes other inputs than the baseline.
        ModelError: A model cannot be loaded.
        UntrustedError: Loading would run code that nobody approved.
        MissingExtraError: The libraries of serving are not installed.
    """
    with requires("serve", needed_by="serving"):
        import httptools  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401

    name = check_service_name(plan.name)
    with ExitStack() as stack:
        stack.enter_context(hold_service(plan.workspace, name))
        listener = stack.enter_context(_listening(plan.config.host, plan.config.http_port))
        if "candidate" in plan.bundles:
            check_same_inputs(plan.bundles["baseline"], plan.bundles["candidate"])
        arms = _open_arms(plan, stack)
        log = _open_log(plan, stack)
        service = _assemble(plan, name, arms, log)
        endpoint = Endpoint(
            service=name,
            url=_url(listener),
            pid=os.getpid(),
            arms={arm.name: arm.bundle.digest for arm in arms.values()},
        )
        service.endpoint = endpoint

        def publish() -> None:
            write_service(plan.workspace, endpoint, service.admin_token)
            stack.callback(forget_service, plan.workspace, name)
            on_ready(endpoint)

        _serve(plan, service, listener, publish)


def _open_arms(plan: ServerPlan, stack: ExitStack) -> dict[str, Arm]:
    cores = max(1, usable_cpus(plan.cpu_limit) // len(plan.bundles))
    arms: dict[str, Arm] = {}
    for name, bundle in plan.bundles.items():
        arms[name] = open_arm(name, bundle, plan.config, cores=cores, trust=plan.trust)
        stack.callback(arms[name].close)
    return arms


def _open_log(plan: ServerPlan, stack: ExitStack) -> ParquetPredictionLog | None:
    config = plan.config
    if not config.log_predictions:
        return None
    log = ParquetPredictionLog(
        plan.workspace.predictions,
        flush_s=config.log_flush_s,
        flush_rows=config.log_flush_rows,
        buffer_bytes=config.log_buffer_bytes,
    )
    log.prepare(check_service_name(plan.name))
    stack.callback(log.close)
    return log


def _assemble(
    plan: ServerPlan, name: str, arms: dict[str, Arm], log: ParquetPredictionLog | None
) -> Service:
    from fairlead.serve.inference.metrics import ServingMetrics
    from fairlead.serve.inference.rest import Service

    config = plan.config
    share = config.candidate_weight if "candidate" in arms else 0.0
    weights = {"baseline": 1.0 - share} | ({"candidate": share} if "candidate" in arms else {})
    outcomes = OutcomeRing()
    observers: list[Observer] = [outcomes.observe]
    metrics = None
    if config.metrics:
        metrics = ServingMetrics(name, lambda: (log.n_written, log.n_dropped) if log else (0, 0))
        observers.append(metrics.observe)
    if log is not None:
        observers.append(log_observer(log, name))
    traffic = Traffic(tuple(arms), TrafficSplit(weights=weights), random.Random())  # noqa: S311
    dataplane = Dataplane(
        name, arms, traffic, timeout_s=config.request_timeout_s, observers=observers
    )
    token = plan.admin_token or secrets.token_urlsafe(24)
    return Service(dataplane, outcomes, metrics, token, config.max_body_bytes)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            # Owning the port needs a listening socket; early clients wait until the model is warm.
            listener.listen(_BACKLOG)
        except OSError as exc:
            raise port_error(host, port, exc) from exc
        yield listener
    finally:
        listener.close()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 (compared, not bound)
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _serve(
    plan: ServerPlan, service: Service, listener: socket.socket, publish: Callable[[], None]
) -> None:
    import uvicorn

    from fairlead.serve.inference.rest import build_app

    class Server(uvicorn.Server):
        """Uvicorn that tells when it listens and leaves the signals to us."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            publish()

        def drain(self) -> None:
            service.is_draining = True
            self.should_exit = True

    config = uvicorn.Config(
        build_app(service),
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        log_level=logging.ERROR,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(plan.config.drain_timeout_s)),
    )
    server = Server(config)

    async def live() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.drain)
        if plan.until_stdin_closes:
            _watch_stdin(lambda: loop.call_soon_threadsafe(server.drain))
        await server.serve(sockets=[listener])
        await service.dataplane.drain()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(live())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # not on every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _watch_stdin(on_end: Callable[[], object]) -> None:
    """Call back when standard input ends, which it does when the parent dies."""

    def wait() -> None:
        # Not `sys.stdin.read`: its lock would be held when the interpreter shuts down.
        with suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        try:
            on_end()
        except RuntimeError:
            _log.debug("the server had ended before its standard input did")

    threading.Thread(target=wait, name="fairlead-stdin", daemon=True).start()
