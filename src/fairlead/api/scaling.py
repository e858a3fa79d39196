"""Load tests, and replicas for a service level objective."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.api.context import Context
from fairlead.api.doors import Door, find_door
from fairlead.core.bundle import Bundle
from fairlead.core.errors import DataError, EndpointError, UsageError
from fairlead.core.files import user_path
from fairlead.core.report import Outcome

if TYPE_CHECKING:
    from fairlead.backends.access import Access
    from fairlead.core.ports import Feeds
    from fairlead.core.signature import Signature
    from fairlead.serve.scaling import LoadTest, ScalingPlan

__all__ = ["load_test", "scale"]

_SERVICE_REQUESTS = 2000
_TIMEOUT_S = 10.0


def load_test(
    target: str | Path,
    data: str,
    *,
    labels: str | None = None,
    model: str | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[LoadTest]:
    """Press a server with rising rates and find the highest that it sustains.

    Args:
        target: URL of a server of the Open Inference Protocol on this machine, name of a running
            service, or a bundle, which is served for the test.
        data: Reference of the rows to send.
        labels: Column that holds the labels, which are not sent.
        model: Name of the model behind a URL; the one of the running service when None.
        trust: Whether code that came with the bundle may run.
        settings: Settings of `LoadConfig`.
        context: Surroundings of the call.

    Raises:
        UsageError: The URL leads to another machine.
        EndpointError: The server cannot be reached, or answers no request.
        DataError: The rows do not fit the model.
    """
    from fairlead.serve import scaling

    ctx = (context or Context.open()).ready_to_record()
    config = scaling.LoadConfig.parse(settings or {})
    with _open_target(target, data, labels, model, ctx, trust=trust) as found:
        test = scaling.press(
            found.sender(config.timeout_s),
            n_rows=found.n_rows,
            url=found.url,
            service=found.service,
            config=config,
            progress=ctx.progress,
        )
        outcome = scaling.load_outcome(test, config, found.subject)
    return ctx.record(outcome)


def scale(
    target: str | Path | None = None,
    data: str | None = None,
    *,
    labels: str | None = None,
    model: str | None = None,
    service_times: str | None = None,
    requests: int = _SERVICE_REQUESTS,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[ScalingPlan]:
    """Find the least number of replicas that keeps p99 under the SLO at a rate.

    Args:
        target: Server whose service times are measured: a URL on this machine, a running service,
            or a bundle, which is served for it.
        data: Reference of the rows to send.
        labels: Column that holds the labels, which are not sent.
        model: Name of the model behind a URL; the one of the running service when None.
        service_times: File with measured service times, instead of `target` and `data`.
        requests: Requests that are measured, one after another.
        trust: Whether code that came with the bundle may run.
        settings: Settings of `ScalingConfig`.
        context: Surroundings of the call.

    Raises:
        UsageError: Neither a target with data nor a file was given, or both.
        EndpointError: The server cannot be reached, or answers no request.
        DataError: The rows do not fit the model, or the service times are no positive numbers.
    """
    import numpy as np

    from fairlead.serve import scaling

    ctx = (context or Context.open()).ready_to_record()
    config = scaling.ScalingConfig.parse(settings or {})
    if (target is None) == (service_times is None):
        raise UsageError(
            "give either a server to measure or a file of service times",
            hint="`fairlead serve scale plan TARGET --data D`, or `--service-times FILE`",
        )
    if service_times is not None:
        from fairlead.backends.service_times import load_service_times

        times, subject = load_service_times(service_times), str(service_times)
    else:
        measured, subject = _measure(str(target), data, labels, model, requests, ctx, trust=trust)
        times = np.array(measured)
    return ctx.record(scaling.scale(times, config, subject=subject, progress=ctx.progress))


def _measure(
    target: str,
    data: str | None,
    labels: str | None,
    model: str | None,
    requests: int,
    ctx: Context,
    *,
    trust: bool,
) -> tuple[list[float], str]:
    from fairlead.serve.scaling import measure_service_ms

    if data is None:
        raise UsageError(
            f"there are no rows to send to {target}", hint="name a file of rows with --data"
        )
    with _open_target(target, data, labels, model, ctx, trust=trust) as found:
        times = measure_service_ms(
            found.sender(_TIMEOUT_S),
            n_rows=found.n_rows,
            requests=requests,
            progress=ctx.progress,
        )
    return times, found.subject


@dataclass(frozen=True)
class _Target:
    url: str
    service: str
    subject: str
    bodies: list[bytes]
    access: Access

    @property
    def n_rows(self) -> int:
        return len(self.bodies)

    def sender(self, timeout_s: float) -> Any:  # noqa: ANN401 (a factory of senders)
        from fairlead.backends.senders import RawSender

        return lambda: RawSender(self.url, self.bodies, timeout_s=timeout_s, access=self.access)


@contextlib.contextmanager
def _open_target(
    target: str | Path,
    data: str,
    labels: str | None,
    model: str | None,
    ctx: Context,
    *,
    trust: bool,
) -> Iterator[_Target]:
    from fairlead.backends.endpoint import spawn_server
    from fairlead.serve.scaling import check_loopback

    text = str(target)
    if "://" in text:
        door = find_door(check_loopback(text), ctx)
        yield _described(door, model or _model_of(door), data, labels, ())
    elif user_path(text).is_dir():
        bundle = Bundle.open(text)
        _check_rows(bundle, data, labels)
        name = f"scale-{bundle.version}"
        with spawn_server(bundle.path, workspace=ctx.workspace, name=name, trust=trust):
            columns = bundle.manifest.feature_columns
            found = _described(find_door(name, ctx), name, data, labels, columns)
            yield replace(found, subject=bundle.digest)
    else:
        door = find_door(text, ctx)
        check_loopback(door.url)
        yield _described(door, model or _model_of(door), data, labels, ())


def _check_rows(bundle: Bundle, data: str, labels: str | None) -> None:
    """Find data that do not fit before a server is started."""
    from fairlead.backends.datasets import load_dataset
    from fairlead.core.dataset import bind

    rows = load_dataset(data, labels=labels).take(slice(0, 1))
    bind(rows, bundle.signature, feature_columns=bundle.manifest.feature_columns)


def _described(
    door: Door, service: str, data: str, labels: str | None, columns: tuple[str, ...]
) -> _Target:
    """Ask the server what its model takes, and prepare one request per row."""
    from fairlead.backends.datasets import load_dataset
    from fairlead.backends.senders import prepare_requests, read_model
    from fairlead.core.dataset import bind

    described = read_model(door.url, service, access=door.access)
    rows = load_dataset(data, labels=labels)
    feeds: Feeds = bind(rows, described.signature, feature_columns=columns)
    _check_finite(feeds, described.signature, is_binary=described.is_binary)
    bodies = prepare_requests(
        door.url,
        service,
        feeds,
        described.signature,
        is_binary=described.is_binary,
        access=door.access,
    )
    return _Target(door.url.rstrip("/"), service, f"service:{service}", bodies, door.access)


def _check_finite(feeds: Feeds, signature: Signature, *, is_binary: bool) -> None:
    import numpy as np

    if is_binary:
        return
    for spec in signature.inputs:
        array = feeds[spec.name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"input `{spec.name}` has missing values, which JSON cannot carry, and the server "
                "takes nothing else",
                hint="give rows without missing values",
            )


def _model_of(door: Door) -> str:
    if door.endpoint is not None:
        return door.endpoint.service
    raise EndpointError(
        f"no service of this workspace answers at {door.url}, so the name of its model is not "
        "known",
        hint="name the model with --model",
    )
