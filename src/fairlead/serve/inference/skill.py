"""Model serving: start a server, prove that it answers rightly, and say how fast."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import EndpointError, GateError
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Array, Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome, Report
from fairlead.core.signature import conform
from fairlead.core.workspace import Workspace
from fairlead.serve.inference.arms import check_same_inputs, free_signature
from fairlead.serve.inference.card import CARD
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.examples import example_feeds
from fairlead.serve.inference.model_versions import ModelSource, name_sources

if TYPE_CHECKING:
    from fairlead.backends.endpoint import ServerHandle

__all__ = ["serve"]

_WARM_REQUESTS = 50
_TOLERANCE = 1e-4


def serve(
    bundle: Bundle | Sequence[ModelSource],
    config: ServingConfig | None = None,
    *,
    workspace: Workspace,
    candidate: Bundle | None = None,
    trust: bool = False,
    within: ExitStack | None = None,
    progress: Progress | None = None,
) -> Outcome[Endpoint]:
    """Start a server for bundles, and check one real inference against a bundle itself.

    Args:
        bundle: What to serve: a bundle, or several with the names of their models. The first
            one's model is the default one.
        config: Settings of serving.
        workspace: Where the server records itself and its predictions.
        candidate: A bundle that shares the traffic of the default model, as arm `candidate`.
        trust: Whether code that came with a model may run.
        within: Stops the server when it closes, and the server ends when this process ends; None
            lets the server outlive this process, until `fairlead serve stop`.
        progress: Hears how far the work is.

    Returns:
        Where the service answers, with its cold start and the latency of first requests.

    Raises:
        PortInUseError: The port is taken; nothing was started.
        EndpointError: The server ended before it was ready, or does not answer.
        GateError: The server answers otherwise than the bundle does.
        SignatureError: The candidate takes other inputs than the baseline.
    """
    from fairlead.backends.endpoint import spawn_server

    chosen = config or ServingConfig()
    hears = progress or SilentProgress()
    given = (ModelSource(None, bundle.path),) if isinstance(bundle, Bundle) else tuple(bundle)
    sources = name_sources(given, chosen.name)
    first = _default_bundle(sources)
    if candidate is not None:
        check_same_inputs(first, candidate)
    hears.begin(f"starting a server for {sources[0].name}", 2)
    handle = spawn_server(
        *(f"{source.name}={source.path}" for source in sources),
        workspace=workspace,
        name=str(sources[0].name),
        host=chosen.host,
        http_port=chosen.http_port,
        candidate=None if candidate is None else candidate.path,
        candidate_weight=None if candidate is None else chosen.candidate_weight,
        trust=trust,
        settings=_further(chosen),
        detach=within is None,
    )
    hears.advance()
    try:
        probe = _probe(handle, first, trust=trust)
    except BaseException:
        handle.stop()
        raise
    if within is not None:
        within.callback(handle.stop)
    hears.advance()
    return _outcome(handle, first, candidate, probe)


def _default_bundle(sources: Sequence[ModelSource]) -> Bundle:
    """Return the bundle that answers where a request names neither model nor version."""
    ours = [Bundle.open(item.path) for item in sources if item.name == sources[0].name]
    return max(reversed(ours), key=lambda bundle: bundle.manifest.created_at)


def _further(config: ServingConfig) -> dict[str, Any]:
    """Return the settings that differ from their defaults and have no option of their own."""
    own = {"name", "host", "http_port", "candidate_weight"}
    document = config.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in document.items() if key not in own}


@dataclass(frozen=True, slots=True)
class _Probe:
    """What the first requests showed.

    Attributes:
        client: The client that asked first.
        first_ms: Latency of the very first request, in ms.
        latencies_ms: Latencies of the requests after it, shape (n_requests,), in ms.
        difference: Largest difference between the server's answer and the bundle's own.
    """

    client: str
    first_ms: float
    latencies_ms: NDArray[np.float64]
    difference: float


def _probe(handle: ServerHandle, bundle: Bundle, *, trust: bool) -> _Probe:
    from fairlead.backends.runners import open_runner
    from fairlead.measure.quality import run_batches

    signature = free_signature(bundle.signature)
    feeds = conform(example_feeds(bundle, signature, 1), signature)
    runner = open_runner(bundle, trust=trust)
    try:
        expected = run_batches(runner, feeds)
    finally:
        runner.close()
    started = time.perf_counter()
    client_name, answered = _first_answer(handle, bundle, feeds)
    first_ms = (time.perf_counter() - started) * 1e3
    difference = _compare(expected, answered)
    client = handle.client()
    latencies = []
    for _ in range(_WARM_REQUESTS):
        started = time.perf_counter()
        client.infer(feeds, version=bundle.version, is_probe=True)
        latencies.append((time.perf_counter() - started) * 1e3)
    client.close()
    return _Probe(client_name, first_ms, np.array(latencies), difference)


def _first_answer(
    handle: ServerHandle, bundle: Bundle, feeds: dict[str, Array]
) -> tuple[str, dict[str, Array]]:
    """Ask with a client that is not ours where one is installed and trusts the server."""
    if handle.endpoint.certificate is not None:
        return _own_answer(handle, bundle, feeds)
    from fairlead.backends.triton_client import infer_with_triton

    try:
        answered = infer_with_triton(
            handle.endpoint.url,
            handle.endpoint.service,
            feeds,
            version=bundle.version,
            headers={"fairlead-probe": "1", "Authorization": f"Bearer {handle.admin_token}"},
        )
    except ModuleNotFoundError:
        return _own_answer(handle, bundle, feeds)
    return "tritonclient.http", answered


def _own_answer(
    handle: ServerHandle, bundle: Bundle, feeds: dict[str, Array]
) -> tuple[str, dict[str, Array]]:
    with handle.client() as client:
        answered = client.infer(feeds, version=bundle.version, is_probe=True).outputs
    return "fairlead's own client", answered


def _compare(expected: dict[str, Array], answered: dict[str, Array]) -> float:
    worst = 0.0
    for name, array in expected.items():
        other = answered.get(name)
        if other is None or other.shape != array.shape:
            found = None if other is None else list(other.shape)
            raise EndpointError(
                f"the server gave output `{name}` with shape {found}, expected {list(array.shape)}",
                hint="report it with the bundle, if you can",
            )
        if array.dtype.kind != "f":
            difference = 0.0 if bool(np.all(array == other)) else float("inf")
        else:
            one, two = array.astype(np.float64), other.astype(np.float64)
            scale = max(1.0, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
            gap = np.abs(one - two)[~(np.isnan(one) & np.isnan(two)) & (one != two)]
            difference = float(gap.max(initial=0.0)) / scale
        worst = max(worst, difference)
    if not worst <= _TOLERANCE:
        raise GateError(
            f"the server's answer differs from the bundle's own by {worst:g}, above {_TOLERANCE:g}",
            hint="look at the server's log; the model may not be deterministic",
        )
    return worst


def _outcome(
    handle: ServerHandle, bundle: Bundle, candidate: Bundle | None, probe: _Probe
) -> Outcome[Endpoint]:
    endpoint = handle.endpoint
    p50, p95 = np.percentile(probe.latencies_ms, [50, 95])
    measures = (
        Measure(name="cold_start_ms", value=handle.cold_start_ms, unit="ms",
                note="from the start of the process until it was warm and ready"),
        Measure(name="first_latency_ms", value=probe.first_ms, unit="ms", note=probe.client),
        Measure(name="latency_p50_ms", value=float(p50), unit="ms",
                note=f"{_WARM_REQUESTS} requests of one row, one after the other"),
        Measure(name="latency_p95_ms", value=float(p95), unit="ms"),
        Measure(name="answer_difference", value=probe.difference, unit="ratio",
                note="largest difference from the bundle's own answer"),
    )  # fmt: skip
    arms = ", ".join(f"{arm} {digest[7:19]}" for arm, digest in endpoint.arms.items())
    report = Report(
        skill=CARD.id,
        title=f"Serving {endpoint.service}",
        summary=f"{endpoint.service} answers at {endpoint.url} ({arms}); its answer equals the "
        f"bundle's own, and one row takes {p50:.2f} ms.",
        measures=measures,
        findings=_findings(endpoint, bundle, candidate),
        files={"log": str(handle.log)},
        details={"endpoint": endpoint.model_dump(mode="json")},
    )
    evidence = tuple(
        Evidence(
            metric=f"serving_{measure.name}",
            value=measure.value,
            unit=measure.unit,
            method=measure.note or "requests of one row, one after the other",
            subject=bundle.digest,
            sample_size=_WARM_REQUESTS if measure.name.startswith("latency") else 1,
            skill=CARD.id,
            labels={"service": endpoint.service},
        )
        for measure in measures
    )
    return Outcome(endpoint, report, evidence)


def _findings(endpoint: Endpoint, bundle: Bundle, candidate: Bundle | None) -> tuple[Finding, ...]:
    findings = [
        Finding(
            level="good",
            text="one inference over HTTP gave the same answer as the bundle itself",
            advice=f"stop it with `fairlead serve stop {endpoint.service}`",
        )
    ]
    if not bundle.runtime.is_tuned:
        findings.append(
            Finding(
                level="info",
                text="threads and batch size are defaults, not measured on this model",
                advice="run `fairlead optimize tune` and serve the bundle it writes",
            )
        )
    if candidate is not None:
        findings.append(
            Finding(
                level="info",
                text=f"the candidate {candidate.version} shares the traffic",
                advice="decide with `fairlead serve rollout`",
            )
        )
    return tuple(findings)
