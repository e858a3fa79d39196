"""The life of one event loop that serves: load, warm up, take requests, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fairlead.backends.cpus import usable_cpus
from fairlead.backends.memory import release_program_text
from fairlead.backends.prediction_log import LogCounts, ParquetPredictionLog
from fairlead.backends.services import (
    check_service_name,
    read_models,
    write_models,
    write_service,
)
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.controls import connect_controls
from fairlead.serve.inference.http.limits import HttpLimits
from fairlead.serve.inference.outcome_log import OutcomeLog
from fairlead.serve.inference.outcomes import OutcomeRing, Outcomes
from fairlead.serve.inference.plan import ServerPlan, Site
from fairlead.serve.inference.planes import PlaneOpener
from fairlead.serve.inference.recording import log_observer, open_log
from fairlead.serve.inference.repository import Repository
from fairlead.serve.inference.security.guard import Guard
from fairlead.serve.inference.security.opening import GuardPlan, open_guard
from fairlead.serve.inference.security.tls import open_server_context
from fairlead.serve.inference.served import Observer
from fairlead.serve.inference.uses import Uses

if TYPE_CHECKING:
    from fairlead.serve.inference.grpc import GrpcServer
    from fairlead.serve.inference.service import Service

__all__ = ["loop_factory", "serve_here"]

_log = logging.getLogger(__name__)
_YOUNG_OBJECTS = 1_000
_SWITCH_S = 0.001


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
        service.endpoint = site.place
        if service.repository.is_loaded():
            service.endpoint = site.place.model_copy(update=_behind(service))
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
    outcomes, hear = _outcomes(site)
    uses = Uses()
    metrics = None
    if config.metrics:
        metrics = ServingMetrics(name, lambda: log.counts if log else LogCounts(0, 0, 0))

    def observers(model: str) -> list[Observer]:
        # Rollouts decide by the outcomes, and they are about the default model.
        chosen: list[Observer] = [hear] if model == name else []
        chosen.append(uses.observer(model))
        if metrics is not None:
            chosen.append(metrics.observe)
        if log is not None:
            chosen.append(log_observer(log, model))
        return chosen

    def keep(document: dict[str, Any]) -> None:
        write_models(plan.workspace, name, document)
        _republish(plan, service)

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
        remember=keep,
        is_replacement=site.is_replacement,
    )
    guard = _guard(plan, repository, site)
    token = plan.admin_token or ""
    service = Service(
        repository,
        opener.traffic,
        outcomes,
        metrics,
        token,
        site.bus,
        site.number,
        guard,
        uses=uses,
        busy_poll_s=config.busy_poll_us / 1e6,
    )
    return service


def _outcomes(site: Site) -> tuple[Outcomes, Observer]:
    """Return where outcomes are read, and what hears of requests."""
    if site.outcomes is None:
        ring = OutcomeRing()
        return ring, ring.observe
    log = OutcomeLog(site.outcomes)
    return log, log


def _republish(plan: ServerPlan, service: Service) -> None:
    """Tell others which bundles answer now, after a version was switched or reloaded."""
    endpoint = service.endpoint
    if endpoint is None or not service.repository.is_loaded():
        return
    behind = _behind(service)
    if behind["arms"] != endpoint.arms:
        service.endpoint = endpoint.model_copy(update=behind)
        write_service(plan.workspace, service.endpoint, plan.admin_token or "")


def _behind(service: Service) -> dict[str, dict[str, str]]:
    """Return what is behind an endpoint: the digest and the directory of every arm's bundle."""
    arms = service.dataplane.arms.values()
    return {
        "arms": {arm.name: arm.bundle.digest for arm in arms},
        "bundles": {arm.name: str(arm.bundle.path.resolve()) for arm in arms},
    }


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


def _serve(plan: ServerPlan, service: Service, site: Site) -> None:
    from fairlead.serve.inference.http.application import build_server

    server = build_server(service, _http_limits(plan.config))
    grpc = None if site.grpc_listener is None else _grpc_server(plan, service)
    context = _context(plan, site, "http/1.1")
    servers = [one for one in (server, grpc) if one is not None]
    service.n_connections = lambda: sum(len(one.connections) for one in servers)

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
        await asyncio.gather(*(one.drain(plan.config.drain_timeout_s) for one in servers))
        await service.repository.drain()

    _settle()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(live())


def _settle() -> None:
    """Prepare the process for a long life, once everything that lives as long was made."""
    gc.collect()
    # No need to look at it again and again; requests leave no rings behind, as a rule.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    # The thread of the log, or of a slow model, must not keep the loop from its requests for long.
    sys.setswitchinterval(_SWITCH_S)
    release_program_text()


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
        refusal_pause_s=config.refusal_pause_ms / 1e3,
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the fastest event loop of this platform; None for Python's own."""
    try:
        import uvloop
    except ModuleNotFoundError:  # not on every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
