"""What Prometheus may ask of a server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fairlead.core.extras import requires
from fairlead.serve.inference.served import ServedRequest

if TYPE_CHECKING:
    from fairlead.serve.inference.dataplane import Dataplane

__all__ = ["ServingMetrics"]

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ARM = ("model", "version", "arm")


class ServingMetrics:
    """Counts and times requests; children of each arm are looked up once."""

    def __init__(self, service: str, logged: Callable[[], tuple[int, int]]) -> None:
        """Create the metrics.

        Args:
            service: Name of the service, the label `model`.
            logged: Returns how many predictions were written and dropped so far.

        Raises:
            MissingExtraError: `prometheus_client` is not installed.
        """
        with requires("serve", needed_by="measuring a server"):
            import prometheus_client as prom

        # Prometheus derives the start of a series itself; one line less per child.
        prom.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._service = service
        self.registry = prom.CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = prom.Counter(
            "fairlead_requests", "Requests by how they ended.", (*_ARM, "status"), **made
        )
        self._total = prom.Histogram(
            "fairlead_request_duration_seconds", "From arrival to answer.", _ARM,
            buckets=_SECONDS, **made,
        )  # fmt: skip
        self._queue = prom.Histogram(
            "fairlead_queue_duration_seconds", "Waiting for the model.", _ARM,
            buckets=_SECONDS, **made,
        )  # fmt: skip
        self._run = prom.Histogram(
            "fairlead_run_duration_seconds", "The model running.", _ARM, buckets=_SECONDS, **made
        )
        self._batch = prom.Histogram(
            "fairlead_batch_rows", "Rows that ran together.", _ARM, buckets=_ROWS, **made
        )
        self._rows = prom.Counter("fairlead_rows", "Rows that were predicted.", _ARM, **made)
        written = prom.Counter("fairlead_predictions_logged", "Predictions written.", **made)
        dropped = prom.Counter(
            "fairlead_predictions_dropped", "Predictions that could not be written.", **made
        )
        self._weight = prom.Gauge(
            "fairlead_traffic_weight", "Share of the requests.", ("model", "arm"), **made
        )
        self._pending = prom.Gauge(
            "fairlead_pending_requests", "Requests that wait or run.", ("model", "arm"), **made
        )
        prom.ProcessCollector(registry=self.registry)
        self._logs = (written, dropped)
        self._logged = logged
        self._told = [0, 0]
        self._render = prom.generate_latest
        self.content_type: str = prom.CONTENT_TYPE_LATEST
        self._timers = lru_cache(16)(self._bind_arm)
        self._counter = lru_cache(512)(self._bind_status)

    def observe(self, served: ServedRequest) -> None:
        """Count one request that an arm took."""
        arm = served.arm
        self._counter(arm.version, arm.name, served.status).inc()
        total, queue, run, batch, rows = self._timers(arm.version, arm.name)
        total.observe(served.total_ms / 1e3)
        if served.status != 200:
            return
        queue.observe(served.queue_ms / 1e3)
        run.observe(served.run_ms / 1e3)
        batch.observe(served.batch_rows)
        rows.inc(served.n_rows)

    def count_rejected(self, status: int) -> None:
        """Count one request that no arm took."""
        self._counter("", "none", status).inc()

    def render(self, dataplane: Dataplane) -> bytes:
        """Return everything in Prometheus's text format."""
        split = dataplane.traffic.split
        for name, arm in dataplane.arms.items():
            self._weight.labels(self._service, name).set(split.weights.get(name, 0.0))
            self._pending.labels(self._service, name).set(arm.queue.n_pending)
        for index, value in enumerate(self._logged()):
            self._logs[index].inc(value - self._told[index])
            self._told[index] = value
        return bytes(self._render(self.registry))

    def _bind_arm(self, version: str, arm: str) -> tuple[Any, ...]:
        names = (self._service, version, arm)
        families = (self._total, self._queue, self._run, self._batch, self._rows)
        return tuple(family.labels(*names) for family in families)

    def _bind_status(self, version: str, arm: str, status: int) -> Any:  # noqa: ANN401 (untyped)
        return self._requests.labels(self._service, version, arm, str(status))
