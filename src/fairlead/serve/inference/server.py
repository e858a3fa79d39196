"""A server's life: take name and port, load, warm up, publish, serve, drain, say goodbye."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.backends.cpus import usable_cpus
from fairlead.backends.prediction_log import LogCounts, ParquetPredictionLog
from fairlead.backends.server_process import port_error
from fairlead.backends.services import (
    check_service_name,
    forget_service,
    hold_service,
    read_models,
    write_models,
    write_service,
)
from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import Endpoint
from fairlead.core.extras import requires
from fairlead.core.workspace import Workspace
from fairlead.serve.inference.accepting import OpenCounts
from fairlead.serve.inference.bus import Bus, LocalBus
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.controls import connect_controls
from fairlead.serve.inference.http.limits import HttpLimits
from fairlead.serve.inference.model_versions import ModelSource
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.planes import PlaneOpener
from fairlead.serve.inference.recording import log_observer, open_log
from fairlead.serve.inference.repository import Repository
from fairlead.serve.inference.security.config import SecurityConfig
from fairlead.serve.inference.security.guard import Guard
from fairlead.serve.inference.security.opening import GuardPlan, open_guard, read_optional
from fairlead.serve.inference.security.own_certificate import write_own_certificate
from fairlead.serve.inference.security.tls import open_server_context
from fairlead.serve.inference.served import Observer

if TYPE_CHECKING:
    from fairlead.serve.inference.grpc import GrpcServer
    from fairlead.serve.inference.service import Service

__all__ = ["ServerPlan", "Site", "loop_factory", "run_server", "serve_here", "watch_stdin"]

_log = logging.getLogger(__name__)
_BACKLOG = 2048


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
        is_token_chosen: Whether somebody chose that token; set when it was made up.
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

        if plan.config.grpc_port is not None:
            import google.protobuf  # noqa: F401

    name = check_service_name(plan.name)
    is_chosen = plan.admin_token is not None
    token = plan.admin_token or secrets.token_urlsafe(24)
    plan = replace(plan, admin_token=token, is_token_chosen=is_chosen)
    with ExitStack() as stack:
        stack.enter_context(hold_service(plan.workspace, name))
        host, grpc_port = plan.config.host, plan.config.grpc_port
        listener = stack.enter_context(_listening(host, plan.config.http_port))
        grpc = None if grpc_port is None else stack.enter_context(_listening(host, grpc_port))

        def publish(endpoint: Endpoint) -> None:
            write_service(plan.workspace, endpoint, token)
            stack.callback(forget_service, plan.workspace, name)
            on_ready(endpoint)

        place = _place(plan, listener, grpc)
        if place.client_certificate is not None:
            write_own_certificate(Path(place.client_certificate))
            stack.callback(Path(place.client_certificate).unlink, missing_ok=True)
        if plan.config.workers > 1:
            from fairlead.serve.inference.supervising import supervise

            supervise(plan, place, listener, publish, grpc_listener=grpc)
            return
        watch = watch_stdin if plan.until_stdin_closes else None
        serve_here(plan, Site(listener, place, grpc, on_listening=publish, watch_stdin=watch))


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
        limits: File of the shared rate limits, or None for one worker.
        counts: How many connections each worker holds, or None for one worker.
        grpc_counts: The same for gRPC.
        before_listening: Awaited with the endpoint once the models are warm.
        on_listening: Called with the endpoint once requests are taken.
        watch_stdin: Calls back in another thread when standard input ends, or None.
    """

    listener: socket.socket
    place: Endpoint
    grpc_listener: socket.socket | None = None
    bus: Bus = field(default_factory=LocalBus)
    number: int = 0
    limits: int | None = None
    counts: OpenCounts | None = None
    grpc_counts: OpenCounts | None = None
    before_listening: Callable[[Endpoint], Awaitable[None]] = _go_on
    on_listening: Callable[[Endpoint], None] = lambda _: None
    watch_stdin: Callable[[Callable[[], object]], None] | None = None


def serve_here(plan: ServerPlan, site: Site) -> None:
    """Load the models, serve in this process until it is told to stop, and drain.

    Raises:
        ModelError: A model cannot be loaded.
        UntrustedError: Loading would run code that nobody approved.
    """
    with ExitStack() as stack:
        log = _open_log(plan, stack)
        service = _assemble(plan, plan.name, log, site)
        stack.callback(service.repository.close)
        service.repository.start()
        arms = {arm.name: arm.bundle.digest for arm in service.dataplane.arms.values()}
        service.endpoint = site.place.model_copy(update={"arms": arms})
        _serve(plan, service, site)


def _open_log(plan: ServerPlan, stack: ExitStack) -> ParquetPredictionLog | None:
    if not plan.config.log_predictions:
        return None
    log = open_log(plan.workspace.predictions, plan.config)
    for name in {str(source.name) for source in plan.sources}:
        log.prepare(check_service_name(name))
    stack.callback(log.close)
    return log


def _assemble(plan: ServerPlan, name: str, log: ParquetPredictionLog | None, site: Site) -> Service:
    from fairlead.serve.inference.metrics import ServingMetrics
    from fairlead.serve.inference.service import Service

    config = plan.config
    outcomes = OutcomeRing()
    metrics = None
    if config.metrics:
        metrics = ServingMetrics(name, lambda: log.counts if log else LogCounts(0, 0, 0))

    def observers(model: str) -> list[Observer]:
        # Rollouts decide by the outcomes, and they are about the default model.
        chosen: list[Observer] = [outcomes.observe] if model == name else []
        if metrics is not None:
            chosen.append(metrics.observe)
        if log is not None:
            chosen.append(log_observer(log, model))
        return chosen

    opener = PlaneOpener(
        config,
        observers,
        cores=usable_cpus(plan.cpu_limit),
        trust=plan.trust,
        default_model=name,
        candidate=plan.candidate,
    )
    if metrics is not None and opener.cache is not None:
        metrics.show_cache(opener.cache)
    limit = config.memory_limit_mb
    repository = Repository(
        plan.sources,
        opener,
        version_policy=config.version_policy,
        memory_limit_bytes=None if limit is None else (limit << 20) // site.bus.n_workers,
        remembered=read_models(plan.workspace, name),
        remember=lambda document: write_models(plan.workspace, name, document),
    )
    guard = _guard(plan, repository, site)
    token = plan.admin_token or ""
    return Service(repository, outcomes, metrics, token, site.bus, site.number, guard)


def _guard(plan: ServerPlan, repository: Repository, site: Site) -> Guard:
    """Open the guard; the first worker says what is open to others."""
    guard = open_guard(
        GuardPlan(
            plan.name,
            repository.default_name,
            plan.config.host,
            plan.workspace.root,
            plan.admin_token or "",
            is_token_chosen=plan.is_token_chosen,
            limits=site.limits,
        ),
        plan.security,
    )
    for sentence in guard.exposure() if site.number == 0 else ():
        _log.warning(sentence)
    return guard


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


def _place(
    plan: ServerPlan, listener: socket.socket, grpc_listener: socket.socket | None
) -> Endpoint:
    tls = plan.security.tls
    scheme = "http" if tls is None else "https"
    certificate = None if tls is None else str(tls.certificate.resolve())
    own = plan.workspace.services / f"{plan.name}.pem"
    is_required = tls is not None and tls.is_client_required
    return Endpoint(
        service=plan.name,
        url=f"{scheme}://{_address(listener)}",
        pid=os.getpid(),
        arms={},
        grpc=None if grpc_listener is None else _address(grpc_listener),
        certificate=certificate,
        client_certificate=str(own) if is_required else None,
    )


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 (compared, not bound)
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _serve(plan: ServerPlan, service: Service, site: Site) -> None:
    from fairlead.serve.inference.http.application import build_server

    server = build_server(service, _http_limits(plan.config))
    grpc = None if site.grpc_listener is None else _grpc_server(plan, service)
    context = _context(plan, site, "http/1.1")

    async def live() -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        if site.watch_stdin is not None:
            site.watch_stdin(lambda: loop.call_soon_threadsafe(stopping.set))
        connect_controls(service)
        endpoint = service.endpoint or site.place
        await site.before_listening(endpoint)
        watching = loop.create_task(_watch_folders(service, plan.config.reload_every_s))
        await server.start([site.listener], context, site.counts)
        if grpc is not None and site.grpc_listener is not None:
            await grpc.start([site.grpc_listener], _context(plan, site, "h2"), site.grpc_counts)
        site.on_listening(endpoint)
        await stopping.wait()
        service.is_draining = True
        watching.cancel()
        drains = [one.drain(plan.config.drain_timeout_s) for one in (server, grpc) if one]
        await asyncio.gather(*drains)
        await service.repository.drain()

    # What was made until here lives as long as the server: no need to look at it again and again.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(live())


async def _watch_folders(service: Service, every_s: float | None) -> None:
    """Take up bundles that change on disk, in every worker at once: the first one looks."""

    async def load(name: str) -> None:
        body = {"name": name, "parameters": {}}
        await service.bus.broadcast("repository.load", body, keep=f"repository/{name}")

    if service.number == 0:
        await service.repository.watch(every_s, load)


def _context(plan: ServerPlan, site: Site, protocol: str) -> ssl.SSLContext | None:
    tls, own = plan.security.tls, site.place.client_certificate
    return None if tls is None else open_server_context(tls, protocols=(protocol,), own=own)


def _grpc_server(plan: ServerPlan, service: Service) -> GrpcServer:
    from fairlead.serve.inference.grpc import GrpcLimits, GrpcServer

    config = plan.config
    limits = GrpcLimits(
        max_connections=config.max_connections,
        max_message_bytes=config.max_body_bytes,
        max_buffered_bytes=max(config.max_buffered_bytes, 2 * config.max_body_bytes),
        stall_s=config.body_timeout_s,
    )
    return GrpcServer(service, limits)


def _http_limits(config: ServingConfig) -> HttpLimits:
    return HttpLimits(
        max_connections=config.max_connections,
        max_body_bytes=config.max_body_bytes,
        max_buffered_bytes=max(config.max_buffered_bytes, config.max_body_bytes),
        header_timeout_s=config.header_timeout_s,
        body_grace_s=config.body_timeout_s,
        min_body_rate=config.min_body_rate,
        keep_alive_s=config.keep_alive_s,
        write_timeout_s=config.write_timeout_s,
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the fastest event loop of this platform; None for Python's own."""
    try:
        import uvloop
    except ModuleNotFoundError:  # not on every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def watch_stdin(on_end: Callable[[], object]) -> None:
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
