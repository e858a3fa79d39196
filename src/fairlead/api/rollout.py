"""Rollouts: start, watch and end them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle
from fairlead.core.decision import Decision
from fairlead.core.errors import FairleadError, NotFoundError, SignatureError, UsageError
from fairlead.core.report import Outcome

if TYPE_CHECKING:
    from fairlead.backends.endpoint import ServerHandle
    from fairlead.core.dataset import Array, Dataset
    from fairlead.core.endpoint import Endpoint
    from fairlead.serve.rollout import RolloutConfig, RolloutJournal, RolloutState

__all__ = ["abort_rollout", "promote_rollout", "roll_out", "rollout_status", "watch_rollout"]

_FOLDER = "rollouts"


def roll_out(
    baseline: str | Path,
    candidate: str | Path,
    data: str,
    *,
    labels: str | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Decision]:
    """Serve two bundles side by side, replay data against them, and decide.

    The server is real, started for the rollout and stopped after it. A rollout that was killed
    goes on where it was when it is called again with the same bundles and settings. A candidate
    whose stored comparison with its original breaks a limit is refused before it is served.

    Args:
        baseline: Bundle that is in use.
        candidate: Bundle that shall replace it.
        data: Reference of the rows to replay.
        labels: Column with the labels; the bundle's own label column when None.
        trust: Whether code that came with the bundles may run.
        settings: Settings of `RolloutConfig`.
        context: Surroundings of the call.

    Raises:
        SignatureError: The bundles take different inputs.
        DataError: The rows do not fit the bundles.
        EndpointError: The server cannot be started or was lost.
    """
    from fairlead.backends.endpoint import spawn_server
    from fairlead.serve import rollout

    ctx = (context or Context.open()).ready_to_record()
    config = rollout.RolloutConfig.parse(settings or {})
    arms = {"baseline": Bundle.open(baseline), "candidate": Bundle.open(candidate)}
    _check_same_inputs(arms["baseline"], arms["candidate"])
    name = f"rollout-{arms['baseline'].version}-{arms['candidate'].version}"
    digests = (arms["baseline"].digest, arms["candidate"].digest)
    refusal = rollout.refuse_stored(arms["candidate"], config, service=name, digests=digests)
    if refusal is not None:
        return ctx.record(refusal)
    rows = _load(arms["baseline"], data, labels, config)
    with (
        spawn_server(
            arms["baseline"].path,
            workspace=ctx.workspace,
            name=name,
            candidate=arms["candidate"].path,
            candidate_weight=0.0,
            trust=trust,
        ) as server,
        contextlib.closing(server.client()) as client,
        _replayed(rows, arms, config, server) as traffic,
    ):
        outcome = rollout.roll_out(
            server.endpoint,
            config,
            client=client,
            traffic=traffic,
            journal=_journal(ctx, name),
            has_labels=rows.labels is not None,
            is_regression=arms["baseline"].manifest.task == "regression",
            progress=ctx.progress,
        )
    return ctx.record(outcome)


def watch_rollout(
    service: str,
    *,
    label_file: str | None = None,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Decision]:
    """Roll the candidate of a running service out on its live traffic, and decide.

    Args:
        service: Name of the service; it was started with a candidate.
        label_file: File with the columns `id` and `label`, read again whenever it changes.
        settings: Settings of `RolloutConfig`.
        context: Surroundings of the call.

    Raises:
        NotFoundError: The service does not run.
        ConflictError: It has no candidate, or a rollout is under way.
        EndpointError: The server was lost.
    """
    from fairlead.backends.endpoint import EndpointClient, find_endpoint
    from fairlead.backends.label_file import LabelFile
    from fairlead.serve import rollout

    ctx = (context or Context.open()).ready_to_record()
    config = rollout.RolloutConfig.parse(settings or {})
    endpoint, token = find_endpoint(ctx.workspace, service)
    candidate = _served(endpoint, "candidate")
    digests = (endpoint.arms.get("baseline", ""), endpoint.arms.get("candidate", ""))
    refusal = rollout.refuse_stored(candidate, config, service=service, digests=digests)
    if refusal is not None and digests[1]:
        return ctx.record(refusal)
    known = LabelFile(label_file) if label_file else None
    with contextlib.closing(EndpointClient.of(endpoint, token)) as client:
        outcome = rollout.roll_out(
            endpoint,
            config,
            client=client,
            traffic=rollout.LiveTraffic(check_seconds=config.check_seconds, labels=known),
            journal=_journal(ctx, service),
            has_labels=known is not None,
            is_regression=known is not None and known.is_regression,
            progress=ctx.progress,
        )
    return ctx.record(outcome)


def rollout_status(
    service: str | None = None, *, context: Context | None = None
) -> Outcome[RolloutState]:
    """Return the rollout of a service as it is remembered; the newest one when None.

    Raises:
        NotFoundError: There never was one.
    """
    from fairlead.serve.rollout import state_report

    ctx = context or Context.open()
    name = service or _newest(ctx)
    journal = _journal(ctx, name)
    state = journal.read()
    if state is None:
        raise _no_rollout(ctx, name)
    return Outcome(state, state_report(state, is_running=journal.is_held))


def promote_rollout(service: str, *, context: Context | None = None) -> Outcome[RolloutState]:
    """Give the candidate all traffic, whatever the evidence says.

    Raises:
        NotFoundError: There is no such rollout, or the service does not run.
        EndpointError: The server cannot be reached.
    """
    return _steer(service, context or Context.open(), promote=True)


def abort_rollout(service: str, *, context: Context | None = None) -> Outcome[RolloutState]:
    """Give the baseline all traffic, and end the rollout if it still runs.

    Raises:
        NotFoundError: There is no such rollout.
        EndpointError: The server cannot be reached.
    """
    return _steer(service, context or Context.open(), promote=False)


def _steer(service: str, ctx: Context, *, promote: bool) -> Outcome[RolloutState]:
    from fairlead.backends.endpoint import EndpointClient, find_endpoint
    from fairlead.serve.rollout import state_report, steer

    journal = _journal(ctx, service)
    state = journal.read()
    if state is None:
        raise _no_rollout(ctx, service)
    try:
        endpoint, token = find_endpoint(ctx.workspace, service)
    except NotFoundError:
        if promote:
            raise
        # The server is gone and its traffic with it: nothing is left to be given back.
        ended = state.model_copy(update={"status": "aborted", "weight": 0.0})
        journal.write(ended)
        return Outcome(ended, state_report(ended, is_running=False))
    with contextlib.closing(EndpointClient.of(endpoint, token)) as client:
        ended = steer(client, journal, promote=promote)
    return Outcome(ended, state_report(ended, is_running=journal.is_held))


@dataclass(frozen=True)
class _Rows:
    feeds: dict[str, Array]
    labels: Array | None
    n_rows: int


def _served(endpoint: Endpoint, arm: str) -> Bundle | None:
    """Return the bundle that answers for an arm; None where it cannot be read or is another now."""
    try:
        bundle = Bundle.open(endpoint.bundles[arm])
    except (KeyError, FairleadError):
        return None
    return bundle if bundle.digest == endpoint.arms.get(arm) else None


def _load(bundle: Bundle, data: str, labels: str | None, config: RolloutConfig) -> _Rows:
    import numpy as np

    from fairlead.backends.datasets import load_dataset
    from fairlead.core.dataset import bind
    from fairlead.measure.quality import matched_labels

    dataset = _labelled(load_dataset(data, labels=labels), bundle)
    if dataset.n_rows > config.max_rows:
        rng = np.random.default_rng(config.seed)
        chosen = rng.choice(dataset.n_rows, config.max_rows, replace=False)
        dataset = dataset.take(np.sort(chosen))
    manifest = bundle.manifest
    feeds = bind(dataset, bundle.signature, feature_columns=manifest.feature_columns)
    truth = None
    if dataset.labels is not None and (labels is not None or manifest.task != "other"):
        truth = matched_labels(manifest, dataset.labels)
    return _Rows(feeds, truth, dataset.n_rows)


def _labelled(dataset: Dataset, bundle: Bundle) -> Dataset:
    """Take the labels from the bundle's own label column when nobody named one."""
    from fairlead.core.dataset import Dataset

    name = bundle.manifest.label_column
    if dataset.labels is not None or name is None or name not in dataset.columns:
        return dataset
    columns = {key: array for key, array in dataset.columns.items() if key != name}
    return Dataset(columns, dataset.columns[name], name, dataset.source)


@contextlib.contextmanager
def _replayed(
    rows: _Rows, arms: Mapping[str, Bundle], config: RolloutConfig, server: ServerHandle
) -> Iterator[Any]:
    import uuid

    from fairlead.backends.access import Access
    from fairlead.backends.senders import sender_factory
    from fairlead.serve.rollout import ReplayTraffic

    signature = arms["baseline"].signature
    traffic = ReplayTraffic(
        sender_factory(
            server.endpoint.url,
            server.endpoint.service,
            rows.feeds,
            signature,
            access=Access.of_endpoint(server.endpoint, server.admin_token),
        ),
        n_rows=rows.n_rows,
        config=config,
        manifests={arm: bundle.manifest for arm, bundle in arms.items()},
        labels=rows.labels,
        name=f"replay-{uuid.uuid4().hex[:8]}",
    )
    with contextlib.closing(traffic):
        yield traffic


def _check_same_inputs(baseline: Bundle, candidate: Bundle) -> None:
    first, second = baseline.signature.inputs, candidate.signature.inputs
    if [(spec.name, spec.dtype) for spec in first] != [(spec.name, spec.dtype) for spec in second]:
        raise SignatureError(
            f"{baseline.path.name} takes {', '.join(map(str, first))}, but "
            f"{candidate.path.name} takes {', '.join(map(str, second))}",
            hint="a canary gives both the same requests: pack the candidate with the same inputs",
        )
    if baseline.digest == candidate.digest:
        raise UsageError(
            f"{baseline.path} and {candidate.path} are the same bundle",
            hint="give the bundle that shall replace the baseline as the second one",
        )


def _journal(ctx: Context, service: str) -> RolloutJournal:
    from fairlead.backends.services import check_service_name
    from fairlead.serve.rollout import RolloutJournal

    return RolloutJournal(ctx.workspace.root / _FOLDER, check_service_name(service))


def _newest(ctx: Context) -> str:
    folder = ctx.workspace.root / _FOLDER
    found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise _no_rollout(ctx, None)
    return found[-1].stem


def _no_rollout(ctx: Context, service: str | None) -> NotFoundError:
    known = sorted(path.stem for path in (ctx.workspace.root / _FOLDER).glob("*.json"))
    what = f"of `{service}` " if service else ""
    return NotFoundError(
        f"there is no rollout {what}in {ctx.workspace.root}",
        hint=f"known are {', '.join(known)}"
        if known
        else "start one with `fairlead serve rollout canary`",
    )
