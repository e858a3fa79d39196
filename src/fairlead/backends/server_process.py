"""Starts a server as a child process, waits until it is ready, and stops it."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from fairlead.backends.endpoint_client import EndpointClient
from fairlead.backends.services import (
    check_service_name,
    find_endpoint,
    list_services,
    log_path,
    name_taken,
)
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import EndpointError, PortInUseError
from fairlead.core.files import translated_os_errors
from fairlead.core.workspace import Workspace

__all__ = ["ServerHandle", "check_port", "port_error", "spawn_server"]

_ENDING_S = 30.0
_LOOK_S = 0.1
_TAIL_LINES = 12


@dataclass(frozen=True)
class ServerHandle:
    """A server that this process started; leaving its `with` block stops it.

    Attributes:
        endpoint: Where it answers.
        admin_token: Opens its control endpoints.
        process: The child process.
        cold_start_ms: Time from the start of the process until it was ready, in ms.
        log: File that holds what the server said.
    """

    endpoint: Endpoint
    admin_token: str
    process: subprocess.Popen[bytes]
    cold_start_ms: float
    log: Path

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def client(self, *, timeout_s: float = 30.0) -> EndpointClient:
        """Return a client that may use the control endpoints."""
        return EndpointClient.of(self.endpoint, self.admin_token, timeout_s=timeout_s)

    def stop(self, *, timeout_s: float = 20.0) -> int:
        """Let the server drain, and end it when that takes too long.

        Args:
            timeout_s: How long the drain may take, in seconds.

        Returns:
            The exit code; 0 after a clean drain.
        """
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.is_alive:
            self.process.terminate()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()


def check_port(host: str, port: int) -> None:
    """Refuse a port that another process holds, before anything is started.

    Raises:
        PortInUseError: The port is taken.
        EndpointError: The address is not one of this machine, or the port is reserved.
    """
    if port == 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            raise port_error(host, port, exc) from exc


def port_error(host: str, port: int, error: OSError) -> EndpointError:
    """Return the error that says why a server cannot listen there."""
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"port {port} of {host} is held by another process",
            hint="choose another --http-port, or 0 for a free one",
        )
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return EndpointError(
        f"cannot listen on port {port} of {host}: {reason}",
        hint="choose an address of this machine, and a port of 1024 or more",
    )


def spawn_server(
    bundle: str | Path,
    *more: str | Path,
    workspace: Workspace,
    name: str,
    host: str = "127.0.0.1",
    http_port: int = 0,
    candidate: str | Path | None = None,
    candidate_weight: float | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    detach: bool = False,
    ready_timeout_s: float = 120.0,
) -> ServerHandle:
    """Start `fairlead serve start` as a child process and wait until it is ready.

    Args:
        bundle: The bundle to serve, as FOLDER or NAME=FOLDER.
        *more: Further bundles.
        workspace: Where the server records itself and its predictions.
        name: Name of the service.
        host: Address to listen on.
        http_port: Port to listen on; 0 takes a free one.
        candidate: A second bundle, as arm `candidate`.
        candidate_weight: Share of the requests the candidate gets, 0 to 1.
        trust: Whether code that came with the model may run.
        settings: Further settings of serving, by name.
        detach: Whether the server outlives this process; else it ends when this process ends.
        ready_timeout_s: How long loading may take, in seconds.

    Raises:
        ConflictError: A server of that name already runs; nothing was started.
        PortInUseError: The port is taken; nothing was started.
        EndpointError: The server ended before it was ready, or took too long.
        WorkspaceError: The workspace cannot be written.
    """
    check_service_name(name)
    _await_free_name(workspace, name)
    check_port(host, http_port)
    command = [sys.executable, "-m", "fairlead", "serve", "start", *map(str, (bundle, *more))]
    command += ["--name", name, "--host", host, "--http-port", str(http_port), "--json"]
    if candidate is not None:
        command += ["--candidate", str(candidate)]
    if candidate_weight is not None:
        command += ["--candidate-weight", repr(float(candidate_weight))]
    if trust:
        command += ["--trust"]
    for key, value in (settings or {}).items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    if not detach:
        command += ["--until-stdin-closes"]
    return _start(command, workspace, name, detach=detach, timeout_s=ready_timeout_s)


def _await_free_name(workspace: Workspace, name: str) -> None:
    """Wait for a server of that name that ends already, for example because its parent died.

    Raises:
        ConflictError: One of that name answers, or does not end.
    """
    limit = time.monotonic() + _ENDING_S
    while True:
        living = [s for s in list_services(workspace) if s.is_alive and s.endpoint.service == name]
        if not living:
            return
        if time.monotonic() > limit or any(_is_ready(one.endpoint.url) for one in living):
            raise name_taken(workspace, name)
        time.sleep(_LOOK_S)


def _is_ready(url: str) -> bool:
    """Say whether a server takes requests; one behind TLS is taken at its word."""
    if not url.startswith("http://"):
        return True
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _start(
    command: list[str], workspace: Workspace, name: str, *, detach: bool, timeout_s: float
) -> ServerHandle:
    log = log_path(workspace, name)
    started = time.perf_counter()
    with translated_os_errors(log, "what the server says"), log.open("wb") as talk:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and arguments)
            command,
            stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            start_new_session=detach,
            env={**os.environ, "FAIRLEAD_HOME": str(workspace.root)},
        )
    try:
        _await_line(process, timeout_s, log)
        endpoint, token = find_endpoint(workspace, name)
    except BaseException:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        raise
    return ServerHandle(endpoint, token, process, (time.perf_counter() - started) * 1e3, log)


def _await_line(process: subprocess.Popen[bytes], timeout_s: float, log: Path) -> None:
    """Wait for the line that a server prints once it is ready; its end of file means death."""
    stdout: IO[bytes] | None = process.stdout
    if stdout is None:
        raise AssertionError("the child was started without a pipe")
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise EndpointError(
                    f"the server was not ready after {timeout_s:g} s; it said: {_tail(log)}",
                    hint="give it more time, or look at its log",
                )
            piece = os.read(stdout.fileno(), 65536)
            if not piece:
                raise _early_end(process.wait(), log)
            if b"\n" in piece:
                return


def _early_end(code: int, log: Path) -> EndpointError:
    """Repeat the error and the hint that the server left with, where it left with one."""
    said = _tail(log)
    error, mark, hint = said.rpartition("\n\nhint: ")
    return EndpointError(
        f"the server ended with exit code {code} before it was ready: "
        + (error.rpartition("error: ")[2] if mark else said),
        hint=hint if mark else f"its whole talk is in {log}",
    )


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "nothing"
    return "\n".join(lines[-_TAIL_LINES:]) or "nothing"
