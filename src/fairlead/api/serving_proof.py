"""Proves that a server answers as its bundle does, with requests of a foreign client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fairlead.api.context import Context
from fairlead.api.row_requests import RowAnswer, send_rows
from fairlead.backends.endpoint import ServerHandle
from fairlead.backends.runners import open_runner
from fairlead.backends.senders import client_name
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Array, first_dimension
from fairlead.core.report import Finding, Measure, Plot, Report, Series

__all__ = ["prove_serving"]

_SKILL = "model-serving-patterns"
_RELATIVE = 1e-4
_ABSOLUTE = 1e-5


def prove_serving(
    bundle: Bundle, handle: ServerHandle, data: Dataset, *, requests: int, context: Context
) -> tuple[Report, tuple[Evidence, ...]]:
    """Send single-row requests and compare every answer with the bundle's own.

    Args:
        bundle: What the server's baseline arm serves.
        handle: The running server.
        data: Rows to send; taken from the start again when there are fewer than `requests`.
        requests: Number of requests.
        context: Hears how far the work is.

    Returns:
        A report, refused when an answer differs, and the measured latencies.

    Raises:
        EndpointError: A request failed.
    """
    rows = np.arange(requests) % data.n_rows
    columns = bundle.manifest.feature_columns
    feeds = bind(data.take(rows), bundle.signature, feature_columns=columns)
    answers = list(
        send_rows(
            handle.endpoint,
            handle.admin_token,
            bundle,
            feeds,
            id_prefix="proof",
            progress=context.progress,
        )
    )
    wrong = _differing(bundle, feeds, answers)
    latencies = np.array([answer.latency_ms for answer in answers])
    return _report(handle, latencies, wrong), _evidence(bundle, latencies)


def _differing(bundle: Bundle, feeds: Mapping[str, Array], answers: list[RowAnswer]) -> list[str]:
    runner = open_runner(bundle, trust=bundle.manifest.needs_trust)
    try:
        wrong = []
        for row in range(first_dimension(feeds)):
            own = runner.run({name: array[row : row + 1] for name, array in feeds.items()})
            if not all(_is_same(own[name], answers[row].outputs.get(name)) for name in own):
                wrong.append(answers[row].id)
        return wrong
    finally:
        runner.close()


def _is_same(own: Array, served: Array | None) -> bool:
    if served is None or own.shape != served.shape:
        return False
    if own.dtype.kind == "f":
        near: Any = np.isclose(own, served, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
        return bool(np.all(near))
    return [_text(value) for value in own.ravel()] == [_text(value) for value in served.ravel()]


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def _report(handle: ServerHandle, latencies: Any, wrong: list[str]) -> Report:  # noqa: ANN401
    p50, p99 = np.percentile(latencies, [50, 99])
    total = len(latencies)
    said = f"{total} requests by {client_name()} over HTTP, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    finding = (
        Finding(level="alert", text=f"{len(wrong)} answers differ, the first is {wrong[0]}")
        if wrong
        else Finding(level="good", text=f"all {total} answers equal the bundle's own")
    )
    order = np.sort(latencies)
    return Report(
        skill=_SKILL,
        title="Serve",
        summary=f"{handle.endpoint.url} answered {said}.",
        verdict="refused" if wrong else "done",
        measures=(
            Measure(name="latency p50", value=float(p50), unit="ms", note="as the client saw it"),
            Measure(name="latency p99", value=float(p99), unit="ms", note="as the client saw it"),
            Measure(name="cold start", value=handle.cold_start_ms, unit="ms"),
            Measure(name="answers that differ", value=len(wrong), unit="count"),
        ),
        findings=(finding,),
        plots=(
            Plot(
                title="Latency of requests, slowest last",
                kind="line",
                x_label="share of requests",
                y_label="ms",
                series=(
                    Series(
                        name="latency",
                        x=tuple(float(i + 1) / total for i in range(total)),
                        y=tuple(float(value) for value in order),
                    ),
                ),
            ),
        ),
        details={"url": handle.endpoint.url, "service": handle.endpoint.service},
    )


def _evidence(bundle: Bundle, latencies: Any) -> tuple[Evidence, ...]:  # noqa: ANN401
    return tuple(
        Evidence(
            metric=f"endpoint_latency_p{share}_ms",
            value=float(np.percentile(latencies, share)),
            unit="ms",
            method=f"single-row requests by {client_name()} over loopback HTTP, one after another",
            subject=bundle.digest,
            sample_size=len(latencies),
            skill=_SKILL,
        )
        for share in (50, 99)
    )
