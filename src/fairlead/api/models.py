"""The models of a running service: list, load, unload, and switch the version that answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairlead.api.context import Context
from fairlead.api.doors import Door, find_door
from fairlead.core.bundle import Bundle
from fairlead.core.errors import (
    AccessError,
    DataError,
    EndpointError,
    NotFoundError,
    UsageError,
)
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.core.units import format_value

if TYPE_CHECKING:
    from fairlead.backends.endpoint import EndpointClient

__all__ = ["list_models", "load_model", "models_table", "switch_model", "unload_model"]

_SKILL = "model-serving-patterns"
_COLUMNS = ("model", "version", "state", "disk", "memory", "requests", "last used")

Entry = dict[str, Any]
"""One version of a model: `name`, `version`, `state`, `reason`, and what else the server tells."""


def list_models(
    service: str, *, timeout_s: float = 30.0, context: Context | None = None
) -> Outcome[tuple[Entry, ...]]:
    """Return every version of every model of a running service.

    Args:
        service: Its name, or the URL of any server with the repository extension of the protocol.
        timeout_s: Longest wait for the answer, in seconds.
        context: Surroundings of the call.

    Raises:
        NotFoundError: No service of that name runs.
        AccessError: The server does not know the caller, or it may not.
        EndpointError: The server cannot be reached, or has no repository.
    """
    door = find_door(service, context or Context.open())
    with door.client(timeout_s=timeout_s) as client:
        entries = _entries(client)
    n_ready = sum(entry["state"] == "READY" for entry in entries)
    what = f"{n_ready} of {len(entries)} versions that {door.name} knows are ready."
    return Outcome(tuple(entries), _report(f"Models of {door.name}", what, entries))


def load_model(
    service: str,
    bundle: str | None = None,
    *,
    model: str | None = None,
    version: str | None = None,
    is_default: bool = False,
    timeout_s: float = 300.0,
    context: Context | None = None,
) -> Outcome[tuple[Entry, ...]]:
    """Load a bundle into a running service, or load again what it knows.

    Args:
        service: Name of the service, or URL of a server.
        bundle: Bundle to add, as `FOLDER` or `MODEL=FOLDER`; a server elsewhere reads the folder
            on its own machine. None loads what is known.
        model: Name of the model; None takes the only one, or the one that the bundle is of.
        version: Load only this version.
        is_default: Whether what is loaded shall answer requests that name no version.
        timeout_s: Longest wait, in seconds.
        context: Surroundings of the call.

    Raises:
        UsageError: It is not said which model is meant.
        NotFoundError: There is no such service, bundle, model or version.
        DataError: It cannot be loaded; what answered before goes on.
        AccessError: The caller may not.
        EndpointError: The server cannot be reached, or has no room.
    """
    door = find_door(service, context or Context.open())
    parameters: dict[str, Any] = {"default": True} if is_default else {}
    with door.client(timeout_s=timeout_s) as client:
        before = _entries(client)
        if bundle is not None:
            model, parameters["bundle"] = _added(door, before, bundle, model)
        name = model or _only_model(door, before)
        if version is not None:
            parameters["version"] = version
        client.load_model(name, parameters)
        entries = _entries(client)
    changed = _changed(before, entries, name)
    return Outcome(tuple(entries), _report(f"Loaded {name}", changed, entries))


def unload_model(
    service: str,
    *,
    model: str | None = None,
    version: str | None = None,
    timeout_s: float = 60.0,
    context: Context | None = None,
) -> Outcome[tuple[Entry, ...]]:
    """Unload a model of a running service, or one version of it.

    Args:
        service: Name of the service, or URL of a server.
        model: Name of the model; None takes the only one.
        version: Unload only this version.
        timeout_s: Longest wait, in seconds.
        context: Surroundings of the call.

    Raises:
        UsageError: It is not said which of several models is meant.
        NotFoundError: There is no such service, model or version.
        AccessError: The caller may not.
        EndpointError: The server cannot be reached.
    """
    door = find_door(service, context or Context.open())
    with door.client(timeout_s=timeout_s) as client:
        before = _entries(client)
        name = model or _only_model(door, before)
        client.unload_model(name, {} if version is None else {"version": version})
        entries = _entries(client)
    gone = _default_that_is_gone(entries, name)
    text = f"{name} of {door.name} is unloaded" + (f" in version {version}." if version else ".")
    return Outcome(tuple(entries), _report(f"Unloaded {name}", text, entries, gone))


def switch_model(
    service: str,
    version: str,
    *,
    model: str | None = None,
    timeout_s: float = 300.0,
    context: Context | None = None,
) -> Outcome[tuple[Entry, ...]]:
    """Let another version of a model answer the requests that name none.

    Args:
        service: Name of the service, or URL of a server.
        version: The version; it is loaded where it is not.
        model: Name of the model; None takes the only one.
        timeout_s: Longest wait, in seconds.
        context: Surroundings of the call.

    Raises:
        UsageError: It is not said which of several models is meant.
        NotFoundError: There is no such service, model or version.
        DataError: The version cannot be loaded; the old one goes on.
        AccessError: The caller may not.
        EndpointError: The server cannot be reached.
    """
    door = find_door(service, context or Context.open())
    with door.client(timeout_s=timeout_s) as client:
        before = _entries(client)
        name = model or _only_model(door, before)
        client.load_model(name, {"version": version, "default": True})
        entries = _entries(client)
    text = f"Version {version} of {name} answers the requests to {door.name} that name none."
    return Outcome(tuple(entries), _report(f"Switched {name}", text, entries))


def models_table(entries: Sequence[Mapping[str, Any]], title: str = "Models") -> Table:
    """Return versions of models as people read them."""
    return Table(title=title, columns=_COLUMNS, rows=tuple(_row(entry) for entry in entries))


def _row(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    why = entry.get("reason") or ("default" if entry.get("is_default") else "")
    state = str(entry.get("state", ""))
    return (
        entry["name"],
        entry.get("version", ""),
        f"{state}, {why}" if why else state,
        *(_size(entry.get(name)) for name in ("size_bytes", "memory_bytes")),
        entry.get("requests", ""),
        _ago(entry),
    )


def _size(n_bytes: int | None) -> str:
    return "" if n_bytes is None else format_value(float(n_bytes), "bytes")


def _ago(entry: Mapping[str, Any]) -> str:
    if "last_used" not in entry:
        return ""
    used = entry["last_used"]
    return "never" if used is None else f"{max(0.0, time.time() - used):,.0f} s ago"


def _report(
    title: str, summary: str, entries: Sequence[Entry], findings: tuple[Finding, ...] = ()
) -> Report:
    ready = sum(entry["state"] == "READY" for entry in entries)
    return Report(
        skill=_SKILL,
        title=title,
        summary=summary,
        measures=(Measure(name="ready_versions", value=ready, unit="count"),),
        findings=findings,
        tables=(models_table(entries),),
        details={"models": list(entries)},
    )


def _entries(client: EndpointClient) -> list[Entry]:
    """Ask for the index, and, where the server tells it and the caller may hear, for more."""
    index = client.index()
    try:
        more = {(item["name"], item["version"]): item for item in client.status()["models"]}
    except (NotFoundError, AccessError, DataError, EndpointError):
        more = {}  # A server of another make, or a caller that may not administer this one.
    return [{**entry, **more.get((entry["name"], entry.get("version")), {})} for entry in index]


def _only_model(door: Door, entries: Sequence[Entry]) -> str:
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    if len(names) == 1:
        return str(names[0])
    raise UsageError(
        f"{door.name} has {len(names)} models, and none is named",
        hint=f"name one of them: --model {' | '.join(names)}",
    )


def _added(door: Door, entries: Sequence[Entry], bundle: str, model: str | None) -> tuple[str, str]:
    """Return the model that a bundle becomes a version of, and the folder to read it from."""
    from fairlead.serve.inference import ModelSource

    source = ModelSource.parse(bundle)
    if model is not None and source.name not in (None, model):
        raise UsageError(
            f"the model is named {source.name!r} and {model!r}", hint="leave --model out"
        )
    name = source.name or model
    if door.endpoint is None:
        # The folder is on the machine of the server, where nothing can be looked up from here.
        return name or _only_model(door, entries), str(source.path)
    opened = Bundle.open(source.path)
    known = {entry["name"] for entry in entries}
    if name is None:
        name = opened.name if opened.name in known else _only_model(door, entries)
    return name, str(opened.path)


def _changed(before: Sequence[Entry], after: Sequence[Entry], name: str) -> str:
    def ready(entries: Sequence[Entry]) -> list[str]:
        mine = (entry for entry in entries if entry["name"] == name)
        return [entry["version"] for entry in mine if entry["state"] == "READY"]

    known = ready(before)
    fresh = [version for version in ready(after) if version not in known]
    first = next((e["version"] for e in after if e["name"] == name and e.get("is_default")), None)
    who = "" if first is None else f"; version {first} answers requests that name none"
    if fresh:
        return f"{name} answers in version {', '.join(fresh)}{' too' if known else ''}{who}."
    return f"{name} answers in version {', '.join(ready(after))} as before{who}."


def _default_that_is_gone(entries: Sequence[Entry], name: str) -> tuple[Finding, ...]:
    for entry in entries:
        if entry["name"] == name and entry.get("is_default") and entry["state"] != "READY":
            return (
                Finding(
                    level="warning",
                    text=f"requests for {name} that name no version are refused: version "
                    f"{entry['version']} is not loaded",
                    advice="load it again, or `fairlead serve models switch` to another version",
                ),
            )
    return ()
