"""How served requests become entries of the prediction log."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.backends.logged_request import LoggedRequest
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.serve.inference.served import Observer, ServedRequest

__all__ = ["log_observer"]


def log_observer(log: ParquetPredictionLog, service: str) -> Observer:
    """Return the observer that hands requests with valid inputs to the log."""

    def observe(requests: Sequence[ServedRequest]) -> None:
        for served in requests:
            remember(served)

    def remember(served: ServedRequest) -> None:
        if served.feeds is None or served.is_probe:
            return
        bundle = served.arm.bundle
        log.append_request(
            LoggedRequest(
                id=served.id,
                service=service,
                manifest=bundle.manifest,
                version=bundle.version,
                bundle_digest=bundle.digest,
                arm=served.arm.name,
                status=served.status,
                feeds=served.feeds,
                outputs=served.outputs,
                n_rows=served.n_rows,
                queue_ms=served.queue_ms,
                run_ms=served.run_ms,
                total_ms=served.total_ms,
                batch_rows=served.batch_rows,
                at=served.at,
                trace_id=served.trace_id,
                error=served.error,
            )
        )

    return observe
