"""Asking the router: with what the workspace knows, and one by one for many problems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from fairlead.api.context import Context
from fairlead.api.evidence_reading import for_router, known_evidence
from fairlead.api.evidence_taking import is_measurable, take_evidence
from fairlead.api.router_lessons import local_weights
from fairlead.api.source_rows import Sources
from fairlead.core.errors import UsageError, WorkspaceError
from fairlead.core.evidence import Evidence
from fairlead.core.settings import Settings
from fairlead.router import Answer, ask_batch
from fairlead.router import ask as ask_router

__all__ = ["Consultation", "answer_document", "ask", "ask_lines", "consult"]


def ask(
    text: str,
    *,
    answers: Sequence[str] = (),
    evidence: Sequence[Evidence] = (),
    model: str | None = None,
    data: str | None = None,
    labels: str | None = None,
    url: str | None = None,
    slo_ms: float | None = None,
    measure: bool = False,
    trust: bool = False,
    context: Context | None = None,
) -> Answer:
    """Name the concern behind a problem, or ask the one question that decides it.

    Args:
        text: The problem in the user's own words.
        answers: Answers to earlier questions, in order: option ids, numbers or free text.
        evidence: Measurements that may settle a question without asking.
        model: Reference of the model; measurements of it that the workspace holds are read too.
        data: Reference of rows to measure on.
        labels: Column of the labels in the rows.
        url: URL or name of a running service; its measurements are read too.
        slo_ms: Longest time that a request may take, in ms.
        measure: Whether a measurement that is missing is taken, instead of asking.
        trust: Whether code that came with the model may run while it is measured.
        context: Workspace whose measurements and lessons count; that of the environment when
            None, if there is one.

    Returns:
        A route, one question, or a redirect to a neighbour.

    Raises:
        UsageError: The text is empty or too long, an answer fits no option, or there is nothing
            to measure on.
        NotFoundError: There is no such model, file or service.
    """
    sources = Sources(model, data, labels, url, slo_ms, trust)
    is_named = sources != Sources() or measure
    ctx = context or (Context.open() if is_named else _workspace_here())
    return consult(
        text, answers=answers, evidence=evidence, sources=sources, measure=measure, context=ctx
    ).answer


def _workspace_here() -> Context | None:
    """Return the workspace if there is one; words alone make none, and need none."""
    try:
        return Context.open() if Settings.load().home.is_dir() else None
    except WorkspaceError:
        return None


@dataclass(frozen=True, slots=True)
class Consultation:
    """An answer, and what was measured for it.

    Attributes:
        answer: The answer.
        taken: Measurements that were taken now, to settle a question.
    """

    answer: Answer
    taken: tuple[Evidence, ...] = ()


def consult(
    text: str,
    *,
    answers: Sequence[str] = (),
    evidence: Sequence[Evidence] = (),
    sources: Sources = Sources(),  # noqa: B008 (frozen)
    measure: bool = False,
    context: Context | None = None,
) -> Consultation:
    """Do what `ask` does, and hand back the measurements that were taken as well.

    Args:
        text: The problem in the user's own words.
        answers: Answers to earlier questions, in order.
        evidence: Measurements that may settle a question without asking.
        sources: What measurements may be read from, or taken on.
        measure: Whether a measurement that is missing is taken, instead of asking.
        context: Workspace; None looks at the given evidence only.

    Raises:
        UsageError: See `ask`.
        NotFoundError: There is no such model, file or service.
    """
    _check_sources(sources)
    known = list(evidence)
    weights = None
    if context is not None:
        weights = local_weights(context)
        known += known_evidence(sources, context, only_fresh=measure)
    taken: list[Evidence] = []
    tried: set[str] = set()
    while True:
        readable = for_router([*known, *taken], slo_ms=sources.slo_ms)
        answer = ask_router(text, answers=tuple(answers), evidence=readable, weights=weights)
        open_question = answer.ambiguity
        if context is None or not measure or open_question is None or open_question in tried:
            return Consultation(answer, tuple(taken))
        tried.add(open_question)
        if is_measurable(open_question):
            taken += take_evidence(open_question, sources, context)


def _check_sources(sources: Sources) -> None:
    if sources.data is not None and sources.model is None and sources.url is None:
        raise UsageError(
            f"{sources.data} alone says nothing", hint="name the --model or the --url as well"
        )
    if sources.labels is not None and sources.data is None:
        raise UsageError(
            f"the labels `{sources.labels}` belong to no rows", hint="name the rows with --data"
        )


def answer_document(consulted: Consultation) -> dict[str, Any]:
    """Return an answer as JSON: `skills` are plain ids in order, `steps` tell why each."""
    answer = consulted.answer
    document = answer.model_dump(mode="json")
    document["steps"] = document["skills"]
    document["skills"] = list(answer.skill_ids)
    document["measured"] = [item.model_dump(mode="json") for item in consulted.taken]
    return document


def ask_lines(
    lines: Iterable[bytes], *, context: Context | None = None
) -> Iterator[dict[str, Any] | UsageError]:
    """Answer many problems, given as JSON lines; a bad line does not stop the others.

    Args:
        lines: `{"id", "text"}` or `{"id", "turns": [text, answer, …]}` in UTF-8 each.
        context: Workspace whose lessons count; None answers as the router was shipped.

    Yields:
        What `fairlead.router.ask_batch` gives, and in place of a line that cannot be read the
        error that names its number.
    """
    weights = None if context is None else local_weights(context)
    source = _Texts(lines)
    is_done = False
    while not is_done:
        # Empty lines are skipped but counted, so they keep the numbers right after a bad line.
        answers = ask_batch(chain(repeat("", source.n_read), source), weights=weights)
        try:
            yield from answers
            is_done = True
        except UsageError as exc:
            yield exc


class _Texts:
    """Lines as text; goes on after a line that is none."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.n_read = 0

    def __iter__(self) -> _Texts:
        return self

    def __next__(self) -> str:
        raw = next(self._lines)
        self.n_read += 1
        try:
            return raw.decode("utf-8-sig" if self.n_read == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise UsageError(
                f"line {self.n_read} is not UTF-8 text: byte {raw[exc.start]:#04x} at {exc.start}",
                hint="write one JSON object per line, in UTF-8",
            ) from exc
