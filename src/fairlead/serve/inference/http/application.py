"""The table of endpoints, and what happens to every request before it reaches one."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import UnauthenticatedError
from fairlead.serve.inference.http.brake import Brake
from fairlead.serve.inference.http.bridge import AsgiBridge
from fairlead.serve.inference.http.events import Events
from fairlead.serve.inference.http.exchange import Exchange, Sender
from fairlead.serve.inference.http.head import Head, HttpError
from fairlead.serve.inference.http.inference import Inference
from fairlead.serve.inference.http.limits import HttpLimits
from fairlead.serve.inference.http.pages import Pages
from fairlead.serve.inference.http.people import People
from fairlead.serve.inference.http.routes import Methods, Route, Routes
from fairlead.serve.inference.http.server import HttpServer
from fairlead.serve.inference.security.callers import Caller, GuardedRequest
from fairlead.serve.inference.security.tokens import KeysPendingError
from fairlead.serve.inference.service import Service

if TYPE_CHECKING:
    from fairlead.serve.inference.security.guard import Guard

__all__ = ["Application", "build_server"]


def build_server(service: Service, limits: HttpLimits) -> HttpServer:
    """Return what serves a service over HTTP; it does not listen yet."""
    application = Application(service, limits)
    metrics = service.metrics
    on_fault: Callable[[int], object] = (
        metrics.count_rejected if metrics is not None else lambda _: None
    )
    return HttpServer(application.dispatch, limits, on_fault=on_fault, screen=application.screen)


class Application:
    """Takes complete requests, asks the guard, and hands them to their handlers."""

    def __init__(self, service: Service, limits: HttpLimits) -> None:
        """Prepare.

        Args:
            service: What is served.
            limits: Sizes that bodies may have.
        """
        self._service = service
        self._tasks: set[asyncio.Task[None]] = set()
        brake = Brake(limits.refusal_pause_s, lambda: service.is_draining)
        self._refuse = brake.refuse
        self._inference = Inference(service, limits.max_body_bytes, self._refuse, self._spawn)
        self._people = People(self._inference, limits.max_body_bytes)
        self._pages = Pages(service, self._inference, self._spawn)
        self._events = Events(self._inference, self._spawn)
        self._bridge = AsgiBridge(self._make_control, self._spawn, self._refuse)
        self._routes = Routes(self._table())

    def dispatch(self, exchange: Exchange) -> None:
        """Answer a complete request, now or later; never raises."""
        head = exchange.head
        try:
            route = head.route
            if not isinstance(route, Route):
                head.route = route = self._routes.find(head.method, head.target)
            guard = self._service.guard
            if guard is None:
                if route.path.startswith("/fairlead/"):
                    self._check_token(exchange)
                route.handler(exchange, route)
            elif route.is_model and guard.is_open:
                route.handler(exchange, route)
            else:
                self._admit(guard, exchange, route)
        except HttpError as fault:
            self._answer_fault(exchange, fault)
        except Exception as exc:  # noqa: BLE001 (the outer loop of a request)
            self._refuse(exchange, exc)

    def screen(self, head: Head, connection: Sender) -> HttpError | None:
        """Refuse a body, before it comes, of somebody who shows no credentials at all."""
        guard = self._service.guard
        if guard is None or not guard.needs_credentials or connection.certificate_subject:
            return None
        if head.get(b"authorization") is not None or head.get(b"x-api-key") is not None:
            return None
        try:
            route = self._routes.find(head.method, head.target)
            guard.admit(GuardedRequest(head.method, route.path, peer=connection.peer))
        except UnauthenticatedError as exc:
            return HttpError(401, exc.message, exc.hint)
        except HttpError:
            return None  # There is no such endpoint; that is told in its turn.
        return None

    def _table(self) -> dict[str, Methods]:
        pages, people, control = self._pages, self._people, self._bridge.serve
        infer, stream = self._inference.infer, self._events.infer_stream
        one = "/v2/models/*"
        version = one + "/versions/*"
        return {
            "/v2": {"GET": pages.server},
            "/v2/health/live": {"GET": pages.live},
            "/v2/health/ready": {"GET": pages.ready},
            "/health": {"GET": pages.ping},
            "/ping": {"GET": pages.ping},
            "/version": {"GET": pages.version},
            one + "/infer": {"POST": infer},
            version + "/infer": {"POST": infer},
            one + "/infer_stream": {"POST": stream},
            version + "/infer_stream": {"POST": stream},
            one: {"GET": pages.model},
            version: {"GET": pages.model},
            one + "/ready": {"GET": pages.model_ready},
            version + "/ready": {"GET": pages.model_ready},
            one + "/config": {"GET": pages.configuration},
            version + "/config": {"GET": pages.configuration},
            "/v2/models/stats": {"GET": pages.statistics},
            one + "/stats": {"GET": pages.statistics},
            version + "/stats": {"GET": pages.statistics},
            "/predict": {"POST": people.predict},
            "/predict/*": {"POST": people.predict},
            "/invocations": {"POST": people.invoke},
            "/invocations/*": {"POST": people.invoke},
            "/metrics": {"GET": pages.metrics},
            "/v2/repository/index": {"POST": control},
            "/v2/repository/models/*/load": {"POST": control},
            "/v2/repository/models/*/unload": {"POST": control},
            "/fairlead/service": {"GET": control},
            "/fairlead/status": {"GET": control},
            "/fairlead/traffic": {"PUT": control},
            "/fairlead/outcomes": {"GET": control},
            "/docs": {"GET": control},
            "/openapi.json": {"GET": control},
        }

    def _make_control(self) -> Any:  # noqa: ANN401 (an ASGI application)
        from fairlead.serve.inference.control import build_control

        return build_control(self._service)

    def _admit(self, guard: Guard, exchange: Exchange, route: Route) -> None:
        guarded = _guarded(exchange, route)
        try:
            caller = guard.admit(guarded)
        except KeysPendingError:
            self._spawn(self._admit_soon(guard, guarded, exchange, route))
        else:
            _enter(guard, guarded, caller, exchange, route)

    async def _admit_soon(
        self, guard: Guard, guarded: GuardedRequest, exchange: Exchange, route: Route
    ) -> None:
        try:
            caller = await guard.admit_soon(guarded)
            _enter(guard, guarded, caller, exchange, route)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._refuse(exchange, exc)

    def _check_token(self, exchange: Exchange) -> None:
        given = (exchange.head.get(b"authorization") or "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {self._service.admin_token}".encode()):
            raise UnauthenticatedError(
                "this endpoint needs the admin token of the service",
                hint="send `Authorization: Bearer TOKEN`; "
                "the token stands in the workspace's service file",
            )

    def _answer_fault(self, exchange: Exchange, fault: HttpError) -> None:
        allowed = self._routes.allowed(exchange.head.target) if fault.status == 405 else ()
        if not allowed:
            self._refuse(exchange, fault)
        elif exchange.head.method == "OPTIONS":
            exchange.answer(200, b"", f"allow: {', '.join(allowed)}\r\n".encode())
        else:
            exchange.refuse(405, fault.message, fault.hint, {"allow": ", ".join(allowed)})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _guarded(exchange: Exchange, route: Route) -> GuardedRequest:
    head = exchange.head
    return GuardedRequest(
        method=head.method,
        path=route.path,
        authorization=head.get(b"authorization"),
        api_key=head.get(b"x-api-key"),
        peer=exchange.peer,
        certificate_subject=exchange.certificate_subject,
        model=route.model,
        origin=head.get(b"origin"),
    )


def _enter(
    guard: Guard, guarded: GuardedRequest, caller: Caller, exchange: Exchange, route: Route
) -> None:
    exchange.caller = caller.name
    exchange.on_answered = lambda status: guard.conclude(guarded, caller, status)
    route.handler(exchange, route)
