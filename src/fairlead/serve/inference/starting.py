"""A server as people start it: take name and port, serve alone or with workers, say goodbye."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from fairlead.backends.server_process import port_error
from fairlead.backends.services import (
    check_service_name,
    forget_service,
    hold_service,
    write_service,
)
from fairlead.core.endpoint import Endpoint
from fairlead.core.extras import requires
from fairlead.serve.inference.plan import ServerPlan, Site
from fairlead.serve.inference.security.own_certificate import write_own_certificate
from fairlead.serve.inference.server import serve_here
from fairlead.serve.inference.stdin_watch import watch_stdin

__all__ = ["run_server"]

_BACKLOG = 2048


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
