"""Small answers by hand: health, metadata and metrics."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fairlead.core.version import __version__
from fairlead.serve.inference.dataplane import Dataplane
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.inference import Inference
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.http.wire import field
from fairlead.serve.inference.model_configuration import configuration_of
from fairlead.serve.inference.openinference import model_metadata
from fairlead.serve.inference.service import Service

__all__ = ["Pages"]

_TEXT = b"content-type: text/plain; charset=utf-8\r\n"


class Pages:
    """One method per page; see `Handler`."""

    def __init__(
        self,
        service: Service,
        inference: Inference,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """Prepare.

        Args:
            service: What the pages are about.
            inference: Finds the dataplane of a model.
            spawn: Runs what cannot be done at once.
        """
        self._service = service
        self._inference = inference
        self._spawn = spawn

    def server(self, exchange: Exchange, _: Route) -> None:
        """Say what the server is."""
        exchange.answer_json(
            {
                "name": "fairlead",
                "version": __version__,
                "extensions": [
                    "binary_tensor_data",
                    "model_repository",
                    "model_configuration",
                    "statistics",
                ],
            }
        )

    def live(self, exchange: Exchange, _: Route) -> None:
        """Say that the process answers."""
        exchange.answer_json({"live": True})

    def ready(self, exchange: Exchange, _: Route) -> None:
        """Say whether the service takes requests."""
        is_ready = self._service.is_ready
        exchange.answer_json({"ready": is_ready}, 200 if is_ready else 503)

    def ping(self, exchange: Exchange, _: Route) -> None:
        """Say the same as `ready`, as MLflow's scoring server and SageMaker do."""
        exchange.answer(200 if self._service.is_ready else 503, b"\n", _TEXT)

    def version(self, exchange: Exchange, _: Route) -> None:
        """Say which version this is."""
        exchange.answer(200, __version__.encode(), _TEXT)

    def model(self, exchange: Exchange, route: Route) -> None:
        """Describe a model."""
        self._inference.on_plane(exchange, route, self._describe)

    def model_ready(self, exchange: Exchange, route: Route) -> None:
        """Say whether a model takes requests."""
        repository = self._service.repository
        is_ready = not self._service.is_draining and repository.is_ready(route.model, route.version)
        document = {"name": route.model, "ready": is_ready}
        exchange.answer_json(document, 200 if is_ready else 503)

    def configuration(self, exchange: Exchange, route: Route) -> None:
        """Say how a model is batched, queued and placed."""
        self._inference.on_plane(exchange, route, self._configure)

    def statistics(self, exchange: Exchange, route: Route) -> None:
        """Show what was counted of a model, or of all, by all workers."""
        self._spawn(self._show_statistics(exchange, route))

    def metrics(self, exchange: Exchange, _: Route) -> None:
        """Show the metrics of all workers."""
        self._spawn(self._show_metrics(exchange))

    def _describe(self, plane: Dataplane, exchange: Exchange, route: Route) -> None:
        arm = plane.choose_arm(route.version) if route.version else plane.baseline
        document = model_metadata(
            plane.service,
            self._service.repository.versions(route.model),
            arm.bundle.manifest.kind,
            arm.signature,
        )
        exchange.answer_json(document)

    def _configure(self, plane: Dataplane, exchange: Exchange, route: Route) -> None:
        arm = plane.choose_arm(route.version) if route.version else plane.baseline
        service = self._service
        exchange.answer_json(
            configuration_of(
                arm,
                version_policy=service.repository.version_policy,
                n_workers=service.bus.n_workers,
                has_cache=plane.cache is not None,
            )
        )

    async def _show_statistics(self, exchange: Exchange, route: Route) -> None:
        body = {"model": route.model, "version": route.version}
        try:
            exchange.answer_json(await self._service.bus.ask("statistics.read", body))
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._inference.refuse(exchange, exc)

    async def _show_metrics(self, exchange: Exchange) -> None:
        try:
            found = await self._service.bus.ask("metrics.read", {})
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._inference.refuse(exchange, exc)
            return
        metrics = self._service.metrics
        kind = "text/plain; charset=utf-8" if metrics is None else metrics.content_type
        exchange.answer(200, found["text"].encode(), field("content-type", kind))
