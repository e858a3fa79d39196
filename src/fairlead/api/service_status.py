"""The servers of a workspace: which run, what they hold, and how they fare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fairlead.api.context import Context
from fairlead.api.models import models_table
from fairlead.core.errors import FairleadError, NotFoundError
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.core.units import format_value

if TYPE_CHECKING:
    from fairlead.backends.endpoint import EndpointClient
    from fairlead.backends.services import ServiceRecord
    from fairlead.core.workspace import Workspace

__all__ = ["service_status"]

_SKILL = "model-serving-patterns"
_COUNTED = "fairlead_predictions_"
_LOG_COUNTS = ("logged", "dropped", "left_out")
_SHOWN_COUNTS = (*_LOG_COUNTS, "expired")
_PATIENCE_S = 5.0
_WORKER_COLUMNS = (
    "process", "state", "clients", "requests", "CPU", "memory", "up", "restarts"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a server said when it was asked.

    Attributes:
        record: What the workspace remembers of it.
        is_ready: Whether it takes requests.
        log: What became of its predictions.
        workers: Its workers.
        models: Every version of its models.
    """

    record: ServiceRecord
    is_ready: bool = False
    log: Mapping[str, int] = field(default_factory=dict)
    workers: Sequence[Mapping[str, Any]] = ()
    models: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        return self.record.endpoint.service

    @property
    def state(self) -> str:
        if not self.record.is_alive:
            return "dead"
        return "ready" if self.is_ready else "not ready"

    @property
    def document(self) -> dict[str, Any]:
        return {
            **self.record.endpoint.model_dump(mode="json"),
            "is_alive": self.record.is_alive,
            "is_ready": self.is_ready,
            "prediction_log": dict(self.log),
            "workers": list(self.workers),
            "models": list(self.models),
        }


def service_status(
    name: str | None = None, *, context: Context | None = None
) -> Outcome[tuple[ServiceRecord, ...]]:
    """Return the servers of the workspace, dead ones included.

    Args:
        name: Only this one.
        context: Surroundings of the call.

    Raises:
        NotFoundError: No server of that name is recorded.
    """
    from fairlead.backends.endpoint import list_services

    ctx = context or Context.open()
    records = tuple(list_services(ctx.workspace))
    if name is not None:
        records = tuple(record for record in records if record.endpoint.service == name)
        if not records:
            raise NotFoundError(
                f"no service `{name}` is recorded in {ctx.workspace.root}",
                hint="`fairlead serve status` lists the ones that are",
            )
    return Outcome(records, _report([_ask(record, ctx.workspace) for record in records], ctx))


def _report(seen: Sequence[_Seen], ctx: Context) -> Report:
    alive = sum(item.record.is_alive for item in seen)
    tables = [_services_table(seen), _log_table(seen)]
    for item in seen:
        tables.append(_workers_table(item))
        if item.models:
            tables.append(models_table(item.models, f"Models of {item.name}"))
    return Report(
        skill=_SKILL,
        title="Services",
        summary=f"{alive} of {len(seen)} recorded services in {ctx.workspace.root} run.",
        measures=(Measure(name="running_services", value=alive, unit="count"),),
        findings=tuple(_findings(seen)),
        tables=tuple(table for table in tables if table.rows),
        details={"services": [item.document for item in seen]},
    )


def _services_table(seen: Sequence[_Seen]) -> Table:
    rows = []
    for item in seen:
        end = item.record.endpoint
        arms = ", ".join(f"{arm} {digest[7:19]}" for arm, digest in end.arms.items())
        rows.append((item.name, item.state, end.url, end.pid, arms))
    columns = ("service", "state", "url", "process", "arms")
    return Table(title="Services", columns=columns, rows=tuple(rows))


def _log_table(seen: Sequence[_Seen]) -> Table:
    rows = tuple(
        (item.name, *(item.log.get(name, "") for name in _SHOWN_COUNTS))
        for item in seen
        if item.log
    )
    columns = ("service", *(name.replace("_", " ") for name in _SHOWN_COUNTS))
    return Table(title="Predictions in the log, rows", columns=columns, rows=rows)


def _workers_table(seen: _Seen) -> Table:
    rows = tuple(_worker_row(worker) for worker in seen.workers)
    return Table(title=f"Workers of {seen.name}", columns=_WORKER_COLUMNS, rows=rows)


def _worker_row(worker: Mapping[str, Any]) -> tuple[Any, ...]:
    def shown(name: str, unit: str) -> str:
        return "" if worker[name] is None else format_value(float(worker[name]), unit)

    return (
        worker["pid"],
        "ready" if worker["is_ready"] else "not ready",
        worker["connections"],
        worker["requests"],
        shown("cpu_s", "s"),
        shown("resident_bytes", "bytes"),
        shown("uptime_s", "s"),
        worker["restarts"],
    )


def _findings(seen: Iterable[_Seen]) -> Iterable[Finding]:
    for item in seen:
        if item.log.get("dropped"):
            yield Finding(
                level="warning",
                text=f"{item.name} dropped {item.log['dropped']:,} predictions from its log",
                advice="look for a full or slow disk, or raise `log_buffer_bytes`",
            )
        restarts = sum(worker["restarts"] for worker in item.workers)
        if restarts:
            yield Finding(
                level="warning",
                text=f"{restarts} workers of {item.name} died and were replaced",
                advice=f"why stands in services/{item.name}.log of the workspace",
            )


def _ask(record: ServiceRecord, workspace: Workspace) -> _Seen:
    """Ask a server how it is; what it does not tell in time is left out."""
    from fairlead.backends.endpoint import EndpointClient
    from fairlead.backends.prediction_retention import expired

    removed = expired(workspace.predictions / record.endpoint.service)
    if not record.is_alive:
        return _Seen(record)
    with EndpointClient.of(record.endpoint, record.admin_token, timeout_s=_PATIENCE_S) as client:
        try:
            status = client.status()
        except FairleadError:
            status = {}  # It is about to end, or too busy.
        return _Seen(
            record,
            client.ready(),
            {**_log_counts(client), "expired": removed.rows},
            status.get("workers", ()),
            status.get("models", ()),
        )


def _log_counts(client: EndpointClient) -> dict[str, int]:
    try:
        lines = client.metrics().splitlines()
    except FairleadError:
        return {}  # Its metrics are switched off, or behind a key.
    found = (line.rpartition(" ") for line in lines if line.startswith(_COUNTED))
    log = {name.removeprefix(_COUNTED): value for name, _, value in found}
    return {
        name: int(float(log[f"{name}_total"])) for name in _LOG_COUNTS if f"{name}_total" in log
    }
