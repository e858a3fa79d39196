"""Where the time of a request goes, and what decides it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.core.errors import DataError
from fairlead.core.evidence import Evidence
from fairlead.core.prediction import PredictionBatch
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Series, Table
from fairlead.measure.verdict import Bottleneck, RequestTimes, Surroundings, find_bottleneck
from fairlead.observe.debugging.card import CARD
from fairlead.observe.debugging.config import DebuggingConfig
from fairlead.observe.debugging.diagnosis import Diagnosis, TimePart

__all__ = ["ServiceTimes", "explain", "times_of_predictions"]

Floats = NDArray[np.float64]

_OK = 200
_FEWEST = 10
_WORDS = {
    "client-and-network": "between the client and the server",
    "queue": "waiting for the model",
    "run": "in the model",
    "read-and-write": "reading requests and writing answers",
}


@dataclass(frozen=True)
class ServiceTimes:
    """Times of a service's requests.

    Attributes:
        service: Its name.
        times: Times of single requests.
        source: How they were taken, for people.
        batch_rows: Rows that ran together on average; None when nobody counted.
        around: What else is known.
    """

    service: str
    times: RequestTimes
    source: str
    batch_rows: float | None = None
    around: Surroundings | None = None


def explain(measured: ServiceTimes, config: DebuggingConfig) -> Outcome[Diagnosis]:
    """Divide the time of requests over the parts of their way, and name the cause."""
    parts = _parts(measured.times)
    verdict = find_bottleneck(measured.times, measured.around, seed=config.seed)
    largest = max(parts, key=lambda part: part.share)
    diagnosis = Diagnosis(
        method="latency",
        subject=measured.service,
        cause=verdict.cause,
        text=f"{largest.share:.0%} of a request's time is spent {_WORDS[largest.part]}; "
        f"{verdict.text}",
        advice=verdict.advice,
        parts=parts,
    )
    total = _total(measured.times)
    return Outcome(
        noun=diagnosis,
        report=_report(measured, diagnosis, verdict, total, config),
        evidence=_evidence(measured, parts, total),
    )


def _total(times: RequestTimes) -> Floats:
    if times.client_ms is None:
        return times.server_ms
    return np.maximum(times.client_ms, times.server_ms)


def _parts(times: RequestTimes) -> tuple[TimePart, ...]:
    total = _total(times)
    pieces: dict[str, Floats] = {}
    if times.client_ms is not None:
        pieces["client-and-network"] = total - times.server_ms
    queue = np.zeros(times.n_requests) if times.queue_ms is None else times.queue_ms
    if times.queue_ms is not None:
        pieces["queue"] = queue
    pieces["run"] = times.run_ms
    pieces["read-and-write"] = np.maximum(times.server_ms - times.run_ms - queue, 0.0)
    whole = max(sum(float(piece.mean()) for piece in pieces.values()), 1e-12)
    return tuple(
        TimePart(
            part=name,
            mean_ms=float(piece.mean()),
            p95_ms=float(np.quantile(piece, 0.95)),
            share=float(piece.mean()) / whole,
        )
        for name, piece in pieces.items()
    )


def _report(
    measured: ServiceTimes,
    diagnosis: Diagnosis,
    verdict: Bottleneck,
    total: Floats,
    config: DebuggingConfig,
) -> Report:
    p50, p95, p99 = (float(np.quantile(total, share)) for share in (0.5, 0.95, 0.99))
    measures = [
        Measure(name="requests", value=len(total), unit="requests"),
        Measure(name="latency_p50_ms", value=p50, unit="ms"),
        Measure(name="latency_p95_ms", value=p95, unit="ms", baseline=config.latency_goal_ms),
        Measure(name="latency_p99_ms", value=p99, unit="ms"),
        Measure(name="model_time_share", value=verdict.model_time_share, unit="ratio"),
    ]
    if measured.batch_rows is not None:
        measures.append(Measure(name="rows_per_batch", value=measured.batch_rows))
    return Report(
        skill=CARD.id,
        title=f"Where the time of {measured.service} goes",
        summary=f"{len(total):,} requests ({measured.source}): {diagnosis.text}.",
        measures=tuple(measures),
        findings=_findings(diagnosis, verdict, p95, config),
        tables=_tables(diagnosis, verdict),
        plots=(_plot(diagnosis),),
        details={
            "cause": verdict.cause,
            "is_model": verdict.is_model,
            "confidence": verdict.confidence,
            "parts": [part.model_dump(mode="json") for part in diagnosis.parts],
        },
    )


def _findings(
    diagnosis: Diagnosis, verdict: Bottleneck, p95: float, config: DebuggingConfig
) -> tuple[Finding, ...]:
    sure = "" if verdict.confidence is None else f" ({verdict.confidence:.0%} of resamples agree)"
    kind = "the model" if verdict.is_model else "the infrastructure"
    findings = [
        Finding(level="info", text=f"look at {kind}: {verdict.text}{sure}", advice=diagnosis.advice)
    ]
    goal = config.latency_goal_ms
    if goal is not None:
        is_met = p95 <= goal
        text = f"the 95th percentile is {p95:.3g} ms, the goal {goal:g} ms"
        findings.append(Finding(level="good" if is_met else "warning", text=text))
    return tuple(findings)


def _tables(diagnosis: Diagnosis, verdict: Bottleneck) -> tuple[Table, ...]:
    return (
        Table(
            title="Parts of a request",
            columns=("part", "mean ms", "p95 ms", "share"),
            rows=tuple(
                (part.part, round(part.mean_ms, 4), round(part.p95_ms, 4), round(part.share, 4))
                for part in diagnosis.parts
            ),
        ),
        Table(
            title="Numbers behind the verdict",
            columns=("number", "value", "threshold", "met"),
            rows=tuple(
                (number.name, round(number.value, 4), number.threshold, number.is_met)
                for number in verdict.numbers
            ),
        ),
    )


def _plot(diagnosis: Diagnosis) -> Plot:
    return Plot(
        title="Where the time goes",
        kind="bar",
        x_label="part of a request",
        y_label="mean, ms",
        series=(
            Series(
                name="mean",
                x=tuple(part.part for part in diagnosis.parts),
                y=tuple(part.mean_ms for part in diagnosis.parts),
            ),
        ),
    )


def _evidence(
    measured: ServiceTimes, parts: tuple[TimePart, ...], total: Floats
) -> tuple[Evidence, ...]:
    run = next(part for part in parts if part.part == "run")
    numbers = (
        ("model_time_share", run.share, "ratio"),
        ("request_latency_p95_ms", float(np.quantile(total, 0.95)), "ms"),
    )
    return tuple(
        Evidence(
            metric=metric,
            value=value,
            unit=unit,
            method=f"times of real requests, {measured.source}",
            subject=measured.service,
            sample_size=len(total),
            skill=CARD.id,
            labels={"service": measured.service},
        )
        for metric, value, unit in numbers
    )


def times_of_predictions(service: str, batch: PredictionBatch) -> ServiceTimes:
    """Read the times of logged requests; the rows of one request count once.

    Raises:
        DataError: Fewer than ten requests were answered.
    """
    fields = batch.fields
    requests = [str(name).partition("#")[0] for name in batch.ids]
    _, first = np.unique(np.array(requests, dtype=object).astype(str), return_index=True)
    chosen = first[np.asarray(fields["status"])[first].astype(np.int64) == _OK]
    if len(chosen) < _FEWEST:
        raise DataError(
            f"the log holds {len(chosen)} answered requests of `{service}`, "
            f"at least {_FEWEST} are needed",
            hint="send it more requests, or let --probe 200 send some",
        )
    columns = {
        name: np.asarray(fields[name], np.float64)[chosen]
        for name in ("run_ms", "total_ms", "queue_ms", "batch_rows")
    }
    return ServiceTimes(
        service=service,
        times=RequestTimes.from_arrays(
            run_ms=columns["run_ms"], server_ms=columns["total_ms"], queue_ms=columns["queue_ms"]
        ),
        source="in its prediction log",
        batch_rows=float(columns["batch_rows"].mean()),
    )
