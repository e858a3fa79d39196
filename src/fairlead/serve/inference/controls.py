"""What a worker does when the bus says so: one handler per operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import NotFoundError
from fairlead.serve.inference.model_statistics import statistics_of
from fairlead.serve.inference.status import worker_status

if TYPE_CHECKING:
    from fairlead.serve.inference.service import Service

__all__ = ["connect_controls"]


def connect_controls(service: Service) -> None:
    """Let the bus reach a worker's traffic, models, metrics, outcomes and status."""
    controls = _Controls(service)
    bus = service.bus
    bus.on("traffic.set", controls.set_traffic)
    bus.on("metrics.read", controls.read_metrics)
    bus.on("outcomes.read", controls.read_outcomes)
    bus.on("statistics.read", controls.read_statistics)
    bus.on("status.read", controls.read_status)
    bus.on("repository.load", controls.load)
    bus.on("repository.unload", controls.unload)


class _Controls:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def set_traffic(self, body: dict[str, Any]) -> dict[str, Any]:
        self._service.traffic.set(TrafficSplit.model_validate(body))
        return {}

    async def load(self, body: dict[str, Any]) -> dict[str, Any]:
        await self._service.repository.load(body["name"], body["parameters"])
        return {}

    async def unload(self, body: dict[str, Any]) -> dict[str, Any]:
        await self._service.repository.unload(body["name"], body["parameters"])
        return {}

    async def read_metrics(self, _: dict[str, Any]) -> dict[str, Any]:
        metrics = self._service.metrics
        if metrics is None:
            raise NotFoundError("metrics are switched off", hint="serve with `--set metrics=true`")
        repository = self._service.repository
        # What is measured is there to be read, also while the default model is not.
        plane = repository.dataplane() if repository.is_loaded() else None
        return {"text": metrics.render(plane).decode()}

    async def read_status(self, _: dict[str, Any]) -> dict[str, Any]:
        return worker_status(self._service)

    async def read_statistics(self, body: dict[str, Any]) -> dict[str, Any]:
        return statistics_of(self._service, body["model"], body["version"])

    async def read_outcomes(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._service.outcomes.read(body["after"], body["limit"])
