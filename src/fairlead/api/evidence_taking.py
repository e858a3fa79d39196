"""Takes the measurement that answers a question of the router."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fairlead.api.context import Context
from fairlead.api.source_rows import Sources, bundle_of, labelled, load_rows
from fairlead.core.errors import NotFoundError, UsageError
from fairlead.core.evidence import Evidence
from fairlead.core.files import digest_bytes
from fairlead.router.answers import QuestionId

if TYPE_CHECKING:
    from fairlead.api.service_place import Place
    from fairlead.core.artifact import Artifact
    from fairlead.core.bundle import Bundle
    from fairlead.core.ports import Feeds

__all__ = ["is_measurable", "take_evidence"]

_HINT: Final = "give --model with --data, or --url of a running service"


def take_evidence(question: QuestionId, sources: Sources, context: Context) -> list[Evidence]:
    """Measure what answers a question, and store it.

    Args:
        question: The question.
        sources: What may be measured.
        context: Keeps the measurements, and hears how far it is.

    Raises:
        UsageError: The sources do not suffice for this question.
        FairleadError: The model, the rows or the service cannot be used.
    """
    if sources.url is None and (sources.model is None or sources.data is None):
        raise UsageError("there is nothing to measure on", hint=_HINT)
    taken = [item for take in _TAKERS[question] for item in take(sources, context)]
    context.evidence.append(taken)
    return taken


def is_measurable(question: QuestionId) -> bool:
    """Whether a measurement can answer this question at all."""
    return question in _TAKERS


def _time(sources: Sources, context: Context) -> list[Evidence]:
    """Measure where a request's time goes: at the service if there is one, else in process."""
    if sources.url is not None:
        from fairlead.api.service_place import find_place
        from fairlead.api.service_timing import time_service

        place = find_place(sources.url, context)
        context.progress.begin(f"time the requests of {place.service}")
        return time_service(place, _feeds(place, sources))
    from fairlead.api.in_process_timing import time_in_process
    from fairlead.core.artifact import Artifact

    context.progress.begin("time requests in this process")
    artifact = Artifact.from_reference(sources.model or "")
    bundle, rows = _bundle(artifact, sources, context), load_rows(sources)
    subject = bundle.digest if artifact.format == "bundle" else artifact.digest
    return time_in_process(bundle, rows, subject=subject, trust=sources.trust)


def _quality(sources: Sources, context: Context) -> list[Evidence]:
    """Compare current rows, or the log of the service, with the bundle's reference."""
    from fairlead.api.observing import monitor

    bundle = bundle_of(sources)
    if sources.data is not None and bundle is not None:
        watched = monitor(
            bundle.path,
            sources.data,
            labels=sources.labels,
            trust=sources.trust,
            context=context,
        )
        return list(watched.evidence)
    if sources.url is None:
        context.progress.note(
            f"{sources.model} is no bundle, so there is no reference to compare with; "
            "pack it with the rows it was evaluated on"
        )
        return []
    from fairlead.api.service_place import find_place

    service = find_place(sources.url, context).service
    try:
        watched = monitor(None if bundle is None else bundle.path, service=service, context=context)
    except NotFoundError as error:
        context.progress.note(f"drift is not known: {error.message}")
        return []
    return list(watched.evidence)


_TAKERS: Final[dict[QuestionId, tuple[Callable[[Sources, Context], list[Evidence]], ...]]] = {
    "model-or-infrastructure": (_time,),
    "speed-inference-or-training": (_time,),
    "speed-or-accuracy": (_time, _quality),
    "proactive-or-reactive": (_time, _quality),
}


def _bundle(artifact: Artifact, sources: Sources, context: Context) -> Bundle:
    """Open a bundle; a model that is none yet is packed into the workspace once."""
    from fairlead.core.bundle import Bundle

    if artifact.format == "bundle":
        return Bundle.open(artifact.path or "")
    from fairlead.api.packing import pack

    parts = f"{artifact.digest} {load_rows(sources).digest} {sources.labels}"
    key = digest_bytes(parts.encode()).removeprefix("sha256:")[:16]
    folder = context.workspace.artifacts / f"packed-{key}"
    if folder.is_dir() and artifact.path is not None:
        return Bundle.open(folder)
    packed = pack(
        artifact.reference,
        data=sources.data or "",
        labels=sources.labels,
        out=folder,
        trust=sources.trust,
        replace=True,
        context=context,
    )
    return packed.noun


def _feeds(place: Place, sources: Sources) -> Feeds | None:
    """Return the rows as a service takes them, or None when there are none to send."""
    if sources.data is None:
        return None
    from fairlead.backends.senders import read_model
    from fairlead.core.dataset import bind

    signature = read_model(place.url, place.service, access=place.access).signature
    rows = load_rows(sources)
    columns: tuple[str, ...] = ()
    bundle = bundle_of(sources)
    if bundle is not None:
        rows, columns = labelled(rows, bundle), bundle.manifest.feature_columns
    return bind(rows, signature, feature_columns=columns)
