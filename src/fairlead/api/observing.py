"""Watching and debugging: monitor, diagnose."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.api.context import Context
from fairlead.api.watched import labelled_rows, logged_window, read_log, require_rows
from fairlead.core.bundle import Bundle
from fairlead.core.errors import UsageError
from fairlead.core.report import Outcome
from fairlead.core.signal import Signal

if TYPE_CHECKING:
    from fairlead.core.dataset import Dataset
    from fairlead.core.ports import Array
    from fairlead.core.prediction import PredictionBatch
    from fairlead.observe.debugging import Diagnosis, ServiceTimes

__all__ = ["diagnose", "monitor"]

_MOST_PREDICTIONS = 200_000
_PROBED = 200


def monitor(
    bundle: str | Path | None = None,
    data: str | Path | None = None,
    *,
    service: str | None = None,
    since: str | None = None,
    version: str | None = None,
    labels: str | None = None,
    fail_on_drift: bool = False,
    textfile: str | Path | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Signal]:
    """Compare current rows, or the logged predictions of a service, with the reference profile.

    Args:
        bundle: The model that is watched; with a service, only where it is not found otherwise.
        data: Reference of current rows; the bundle's label column is used when it is there.
        service: Service whose logged predictions are watched instead.
        since: How far back its log is read, for example `1h`; None reads the newest rows.
        version: Only predictions of this version.
        labels: Column of the labels.
        fail_on_drift: Whether an alert is a refusal, which exits with 1.
        textfile: File of gauges for node_exporter to write, ending in `.prom`.
        trust: Whether code and pickles that came with the model may run.
        settings: Settings of `MonitoringConfig`.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        UsageError: Neither or both of a bundle's data and a service are given.
        NotFoundError: A file, the service's predictions or their bundle are not found.
        DataError: A column is missing, or holds text where the reference has numbers.
        ConfigError: A setting is unknown or out of range.
    """
    from fairlead.observe import monitoring

    config = monitoring.MonitoringConfig.parse(settings or {})
    ctx = (context or Context.open()).ready_to_record()
    chosen, current = _subject(ctx, bundle, data, service, since, version, labels)
    outcome = monitoring.monitor(
        chosen, current, config, service=service, trust=trust, progress=ctx.progress
    )
    if textfile is not None:
        outcome = _exported(outcome, Path(textfile))
    if fail_on_drift and outcome.noun.is_alerting:
        report = outcome.report.model_copy(update={"verdict": "refused"})
        outcome = Outcome(outcome.noun, report, outcome.evidence)
    return ctx.record(outcome)


def _subject(
    context: Context,
    bundle: str | Path | None,
    data: str | Path | None,
    service: str | None,
    since: str | None,
    version: str | None,
    labels: str | None,
) -> tuple[Bundle, Dataset | PredictionBatch]:
    if data is not None:
        if bundle is None:
            raise UsageError("rows were given without a bundle", hint="name the bundle first")
        if since is not None or version is not None:
            raise UsageError(
                "--since and --version choose logged predictions, but --data names rows",
                hint="leave out one of them",
            )
        opened = Bundle.open(bundle)
        return opened, labelled_rows(opened, data, labels)
    if service is None:
        raise UsageError(
            "neither rows nor a service are named",
            hint="give a bundle and --data, or --service with a name",
        )
    if labels is not None:
        raise UsageError(
            "the prediction log holds no labels, but --labels is given",
            hint="give labelled rows with --data",
        )
    return logged_window(
        context, service, bundle=bundle, since=since, version=version, limit=_MOST_PREDICTIONS
    )


def _exported(outcome: Outcome[Signal], path: Path) -> Outcome[Signal]:
    from fairlead.backends.prometheus_textfile import write_drift

    effects = {shift["column"]: shift["effect"] for shift in outcome.report.details["columns"]}
    write_drift(path, outcome.noun, effects, at_s=time.time())
    files = {**outcome.report.files, "gauges": str(path)}
    report = outcome.report.model_copy(update={"files": files})
    return Outcome(outcome.noun, report, outcome.evidence)


def diagnose(
    bundle: str | Path | None = None,
    data: str | Path | None = None,
    *,
    service: str | None = None,
    url: str | None = None,
    probe: int = 0,
    since: str | None = None,
    labels: str | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Diagnosis]:
    """Find the worst slices of labelled rows, or where the time of a service's requests goes.

    Without a service the rows are answered by the bundle and searched for slices. With one, the
    times of its logged requests are divided over the parts of their way; `probe` or a URL sends
    real requests instead.

    Args:
        bundle: The model; with a service it names the columns of `data`.
        data: Reference of rows: labelled ones to search, or ones to send.
        service: Service whose requests are slow.
        url: Base URL of the server; looked up in the workspace when None.
        probe: Requests to send; 0 reads the log, unless a URL is given.
        since: How far back the log is read.
        labels: Column of the labels.
        trust: Whether code and pickles that came with the model may run.
        settings: Settings of `DebuggingConfig`.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        UsageError: Neither rows nor a service are named, or a URL without a service.
        NotFoundError: A file, the service or its predictions are not found.
        DataError: The rows have no labels or do not fit the model.
        EndpointError: The server cannot be reached.
    """
    from fairlead.observe import debugging

    config = debugging.DebuggingConfig.parse(settings or {})
    ctx = (context or Context.open()).ready_to_record()
    opened = None if bundle is None else Bundle.open(bundle)
    if service is not None:
        if url is None and probe == 0:
            measured = _logged_times(ctx, service, since)
        else:
            measured = _probed_times(ctx, service, url, probe, _feeds(opened, data, labels))
        return ctx.record(debugging.diagnose(measured, config))
    if url is not None:
        raise UsageError("a URL is given without a service", hint="name it with --service")
    if opened is None:
        raise UsageError("neither a bundle nor a service is named", hint="give a bundle and --data")
    rows = labelled_rows(opened, require_rows(data), labels)
    return ctx.record(
        debugging.diagnose(rows, config, bundle=opened, trust=trust, progress=ctx.progress)
    )


def _logged_times(context: Context, service: str, since: str | None) -> ServiceTimes:
    from fairlead.observe.debugging import times_of_predictions

    batch = read_log(context, service, since=since, limit=_MOST_PREDICTIONS)
    return times_of_predictions(service, batch)


def _probed_times(
    context: Context, service: str, url: str | None, probe: int, feeds: dict[str, Array] | None
) -> ServiceTimes:
    from fairlead.api.doors import find_door
    from fairlead.backends.request_probe import probe_url
    from fairlead.observe.debugging import ServiceTimes

    door = find_door(url or service, context)
    times = probe_url(door.url, service, feeds, requests=probe or _PROBED, access=door.access)
    return ServiceTimes(service, times, f"sent to {door.url} one after the other")


def _feeds(
    bundle: Bundle | None, data: str | Path | None, labels: str | None
) -> dict[str, Array] | None:
    """Return rows to send, or None to send zeros."""
    if data is None:
        return None
    if bundle is None:
        raise UsageError(
            "rows to send are given without the bundle that names their columns",
            hint="add --bundle, or leave out --data to send zeros",
        )
    from fairlead.core.dataset import bind

    rows = labelled_rows(bundle, data, labels)
    columns = bundle.manifest.feature_columns
    return dict(bind(rows, bundle.signature, feature_columns=columns))
