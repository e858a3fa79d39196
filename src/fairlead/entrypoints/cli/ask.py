"""`fairlead ask`: one problem, a dialogue, or a file of problems."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.core.errors import UsageError, WorkspaceError
from fairlead.entrypoints.cli.ask_batch import answer_batch
from fairlead.entrypoints.cli.door import JsonFlag, progress, show, talk

if TYPE_CHECKING:
    from fairlead.api.feedback import Asked, Label
    from fairlead.api.routing import Consultation
    from fairlead.router import Answer, Question

__all__ = ["Answers", "Given", "ask_command", "converse"]

Answers = Annotated[
    list[str] | None,
    typer.Option("--answer", "-a", help="Answer to a question, in order; repeat for follow-ups."),
]
Text = Annotated[
    str | None,
    typer.Argument(help="The problem in your own words; - reads stdin.", show_default=False),
]

_MAX_STDIN_BYTES = 500_000


@dataclass(frozen=True, slots=True)
class Given:
    """What measurements may be read from, or taken on; see `fairlead.ask`."""

    model: str | None = None
    data: str | None = None
    labels: str | None = None
    url: str | None = None
    slo_ms: float | None = None
    trust: bool = False
    measure: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether no option was given."""
        return self == Given()


def ask_command(
    text: Text = None,
    answer: Answers = None,
    model: Annotated[
        str | None, typer.Option(help="Model or bundle whose measurements may settle a question.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Rows to measure on: Parquet, CSV, JSONL or npz.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Column of the labels in the rows.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Running service to measure: its URL, or its name.")
    ] = None,
    slo_ms: Annotated[
        float | None,
        typer.Option("--slo-ms", min=0.001, help="Longest time a request may take, in ms."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that came with the model to measure it.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take the measurement that is missing, then answer.")
    ] = False,
    batch: Annotated[
        str | None,
        typer.Option(help='JSON lines {"id", "text"} or {"id", "turns"}; - reads stdin.'),
    ] = None,
    correct: Annotated[
        str | None,
        typer.Option(
            help="What the last answer should have been: SKILL[,SKILL], redirect:NEIGHBOUR or "
            "clarify:QUESTION."
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Name the concern behind a problem, or ask the one question that decides it."""
    given = Given(model, data, labels, url, slo_ms, trust, measure)
    answers = list(answer or [])
    if batch is not None:
        _check_alone("--batch", text, answers, given, correct)
        answer_batch(batch, as_json=json_)
    elif text is None and correct is not None:
        _check_alone("--correct without a text", None, answers, given, None)
        _correct_last(correct, as_json=json_)
    elif text is None:
        raise UsageError(
            "there is no problem to answer",
            hint='write it in quotes: fairlead ask "my model is slow", or - to read stdin',
        )
    else:
        _answer_one(_text_of(text), answers, given, correct, as_json=json_)


def _check_alone(
    option: str, text: str | None, answers: list[str], given: Given, correct: str | None
) -> None:
    if text is not None or answers or correct is not None or not given.is_nothing:
        raise UsageError(
            f"{option} stands alone", hint="leave the text and the options about one problem out"
        )


def _text_of(argument: str) -> str:
    if argument != "-":
        return argument
    raw = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(raw) > _MAX_STDIN_BYTES:
        raise UsageError(
            f"the text on stdin has more than {_MAX_STDIN_BYTES:,} bytes",
            hint="keep the sentences that say what is wrong and leave the logs out",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"the text on stdin is not UTF-8: byte {raw[exc.start]:#04x} at {exc.start}",
            hint="send text, not a binary file",
        ) from exc


def _answer_one(
    text: str, answers: list[str], given: Given, correct: str | None, *, as_json: bool
) -> None:
    from fairlead.api.feedback import parse_label
    from fairlead.api.routing import answer_document

    label = None if correct is None else parse_label(correct)
    result = converse(text, answers, given, is_silent=as_json)
    if as_json:
        show(answer_document(result))
    else:
        from fairlead.entrypoints.render.answers import print_answer

        print_answer(result.answer, offers_measuring=not given.measure)
        _tell_measured(result)
    _remember(result.answer, label)


def _tell_measured(result: Consultation) -> None:
    from fairlead.api.evidence_reading import for_router

    for item in result.taken:
        if for_router([item]):
            line = f"measured now: {item.metric} = {item.value:.4g} {item.unit} ({item.method})"
            talk().print(line, markup=False, soft_wrap=True)
    used = {reading.metric for reading in result.answer.evidence_used}
    causes = {
        f"{item.labels['cause']}: {item.labels['why']}"
        for item in result.taken
        if "why" in item.labels and item.metric in used
    }
    for cause in causes:
        talk().print(f"what decides: {cause}", markup=False, soft_wrap=True)
    if result.taken and result.answer.ambiguity is not None:
        talk().print("what was measured does not settle it, so it is asked", markup=False)


def _remember(result: Answer, label: Label | None) -> None:
    """Remember an answer; it is worth giving even where it cannot be remembered."""
    from fairlead.api.context import Context
    from fairlead.api.feedback import correct, remember

    try:
        context = Context.open()
        asked = remember(result, context)
    except WorkspaceError as exc:
        if label is not None:
            raise
        talk().print(f"not remembered: {exc.message}", markup=False)
        return
    if label is not None:
        if asked is None:
            raise UsageError(
                "nothing is recorded, so nothing can be corrected", hint="set FAIRLEAD_RECORD=1"
            )
        _thank(correct(label, context, asked=asked))


def converse(text: str, answers: list[str], given: Given, *, is_silent: bool) -> Consultation:
    """Ask, and in a terminal go on asking until the router has decided.

    Args:
        text: The problem.
        answers: The answers so far; what is said in the dialogue is appended.
        given: Where measurements may come from.
        is_silent: Never prompt.
    """
    from fairlead.router import Question

    result = _ask(text, answers, given)
    while isinstance(result.answer, Question) and not is_silent and _is_terminal():
        result = _next(result.answer, text, answers, given)
    return result


def _ask(text: str, answers: list[str], given: Given) -> Consultation:
    from fairlead.api.context import Context
    from fairlead.api.routing import consult
    from fairlead.api.source_rows import Sources

    sources = Sources(given.model, given.data, given.labels, given.url, given.slo_ms, given.trust)
    # Words are read at once; only a measurement takes long enough to be watched.
    with progress() if given.measure else nullcontext() as bars:
        try:
            context = Context.open(progress=bars)
        except WorkspaceError:
            # Words alone need no workspace.
            if not given.is_nothing:
                raise
            context = None
        return consult(
            text, answers=answers, sources=sources, measure=given.measure, context=context
        )


def _next(question: Question, text: str, answers: list[str], given: Given) -> Consultation:
    """Put a question to the person in front of the terminal until the answer fits."""
    from fairlead.entrypoints.render.answers import print_answer

    print_answer(question, to_stderr=True, offers_measuring=not given.measure)
    while True:
        reply = _reply(f"answer (1-{len(question.options)}, or in your words)")
        try:
            result = _ask(text, [*answers, reply], given)
        except UsageError as exc:
            talk().print(f"{exc.message}; {exc.hint}", markup=False)
            continue
        answers.append(reply)
        return result


def _reply(prompt: str) -> str:
    try:
        return str(typer.prompt(prompt, err=True))
    except typer.Abort:
        typer.echo(err=True)  # What is said next does not belong to the line of the prompt.
        raise


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _correct_last(correct: str, *, as_json: bool) -> None:
    from fairlead.api.context import Context
    from fairlead.api.feedback import correct as attach
    from fairlead.api.feedback import parse_label

    asked = attach(parse_label(correct), Context.open())
    if as_json:
        show(asked.model_dump(mode="json"))
        return
    _thank(asked)


def _thank(asked: Asked) -> None:
    shown = asked.text if len(asked.text) <= 60 else f"{asked.text[:57]}..."
    talk().print(
        f"remembered: “{shown}” was answered {asked.answered} and should be {asked.correction}; "
        "see `fairlead router evaluate`",
        markup=False,
    )
