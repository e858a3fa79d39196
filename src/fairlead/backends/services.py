"""Records of running servers in the workspace: who answers where, and who still lives.

    services/<name>.json   {"endpoint": …, "admin_token": …}, readable by the owner only
    services/<name>.lock   locked by the server for as long as its process lives
    services/<name>.models which models it holds, so that a restart serves the same
    services/<name>.log    what a server that was started in the background said

A lock dies with its process, even by kill -9, so a record without one is stale, whoever has the
process id today.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import ConflictError, EndpointError, NotFoundError, UsageError
from fairlead.core.files import translated_os_errors, write_json
from fairlead.core.workspace import Workspace

__all__ = [
    "ServiceRecord",
    "check_service_name",
    "find_endpoint",
    "forget_service",
    "hold_service",
    "list_services",
    "log_path",
    "name_taken",
    "read_models",
    "stop_service",
    "write_models",
    "write_service",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_POLL_S = 0.02
_LOCK_PATIENCE_S = 0.3


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One server as the workspace remembers it.

    Attributes:
        endpoint: Where it answers.
        admin_token: Opens its control endpoints; never shown.
        is_alive: Whether its process still holds its lock.
    """

    endpoint: Endpoint
    admin_token: str = field(repr=False)
    is_alive: bool


def check_service_name(name: str) -> str:
    """Return a name that can be a file and a part of a URL.

    Raises:
        UsageError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a service",
            hint="use letters, digits, dots, dashes and underscores, at most 64",
        )
    return name


def log_path(workspace: Workspace, name: str) -> Path:
    """Return where a server that is started in the background writes what it says."""
    return workspace.services / f"{name}.log"


@contextmanager
def hold_service(workspace: Workspace, name: str) -> Iterator[None]:
    """Own a service's name while the block runs.

    Raises:
        ConflictError: Another live server has the name.
        WorkspaceError: The workspace cannot be written.
    """
    path = workspace.services / f"{check_service_name(name)}.lock"
    with translated_os_errors(path, "the lock of the service"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(handle):
            raise name_taken(workspace, name)
        yield
    finally:
        os.close(handle)


def name_taken(workspace: Workspace, name: str) -> ConflictError:
    """Return the error that says that a name is in use."""
    return ConflictError(
        f"a server named `{name}` already runs in {workspace.root}",
        hint=f"choose another --name, or stop it with `fairlead serve stop {name}`",
    )


def write_service(workspace: Workspace, endpoint: Endpoint, admin_token: str) -> None:
    """Publish a server to the other commands of this workspace.

    Raises:
        WorkspaceError: The workspace cannot be written.
    """
    document = {"endpoint": endpoint.model_dump(mode="json"), "admin_token": admin_token}
    write_json(_path(workspace, endpoint.service), document, mode=0o600)


def write_models(workspace: Workspace, name: str, document: Mapping[str, Any]) -> None:
    """Keep which models a service holds; it stays when the server ends.

    Raises:
        WorkspaceError: The workspace cannot be written.
    """
    write_json(workspace.services / f"{name}.models", dict(document), mode=0o600)


def read_models(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return what `write_models` kept last, or nothing."""
    try:
        document = json.loads(workspace.services.joinpath(f"{name}.models").read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def forget_service(workspace: Workspace, name: str) -> None:
    """Remove the record of a server that ended."""
    with suppress(OSError):
        _path(workspace, name).unlink(missing_ok=True)


def find_endpoint(workspace: Workspace, service: str) -> tuple[Endpoint, str]:
    """Return where a live service answers, and its admin token.

    Raises:
        NotFoundError: No server of that name runs in the workspace.
    """
    records = {record.endpoint.service: record for record in list_services(workspace)}
    record = records.get(check_service_name(service))
    if record is not None and record.is_alive:
        return record.endpoint, record.admin_token
    raise _missing(workspace, service, "has ended without a goodbye" if record else "does not run")


def _missing(workspace: Workspace, service: str, what: str) -> NotFoundError:
    alive = [item.endpoint.service for item in list_services(workspace) if item.is_alive]
    start = f"start it with `fairlead serve start BUNDLE --name {service}`"
    return NotFoundError(
        f"the service `{service}` {what} in {workspace.root}",
        hint=f"running are {', '.join(alive)}" if alive else start,
    )


def list_services(workspace: Workspace) -> list[ServiceRecord]:
    """Return every recorded server, by name; unreadable records are left out."""
    found = (_read(path) for path in sorted(workspace.services.glob("*.json")))
    return [record for record in found if record is not None]


def stop_service(workspace: Workspace, name: str, *, timeout_s: float = 30.0) -> ServiceRecord:
    """Ask a server to drain and wait until it has ended.

    Args:
        workspace: Where it is recorded.
        name: Its name.
        timeout_s: How long the drain may take, in seconds.

    Raises:
        NotFoundError: No such server is recorded.
        EndpointError: It did not end in time.
    """
    record = _read(_path(workspace, check_service_name(name)))
    if record is None:
        raise _missing(workspace, name, "does not run")
    deadline = time.monotonic() + timeout_s
    if record.is_alive:
        with suppress(ProcessLookupError):
            os.kill(record.endpoint.pid, signal.SIGTERM)
    while _is_locked(_path(workspace, name).with_suffix(".lock")):
        if time.monotonic() > deadline:
            raise EndpointError(
                f"`{name}` (process {record.endpoint.pid}) still runs {timeout_s:g} s after "
                "it was asked to stop",
                hint=f"wait for its requests, or end it with `kill -9 {record.endpoint.pid}`",
            )
        time.sleep(_POLL_S)
    forget_service(workspace, name)
    return record


def _path(workspace: Workspace, name: str) -> Path:
    return workspace.services / f"{name}.json"


def _read(path: Path) -> ServiceRecord | None:
    try:
        document = json.loads(path.read_text())
        endpoint = Endpoint.model_validate(document["endpoint"])
        token = str(document["admin_token"])
    except (OSError, ValueError, TypeError, KeyError, ValidationError):
        return None
    return ServiceRecord(endpoint, token, _is_locked(path.with_suffix(".lock")))


def _lock(handle: int) -> bool:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody who only asks whether the lock is held holds it for an instant.
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
