"""Problems whose right answer is known: those that ship, a file of the user, corrections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairlead.api.context import Context
from fairlead.api.feedback import Label, parse_label, recall
from fairlead.core.errors import DataError, NotFoundError, UsageError
from fairlead.router.corpus import Utterance, load_corpus
from fairlead.router.ordering import SHORT

__all__ = ["LabelledProblem", "corrected_problems", "problems_of_file", "shipped_problems"]

_FORM: Final = '{"id": "1", "text": "...", "answer": "model-serving-patterns"}'


@dataclass(frozen=True, slots=True)
class LabelledProblem:
    """A problem, and what the router should say.

    Attributes:
        text: The user's words.
        label: The right answer.
        stratum: What kind of text it is, for scores by kind.
        answers: Answers to the router's questions that were given.
        is_shipped: Whether it ships with the router.
        is_held_back: Whether it ships, and nothing was fitted or tuned on it.
    """

    text: str
    label: Label
    stratum: str
    answers: tuple[str, ...] = ()
    is_shipped: bool = False
    is_held_back: bool = False


def shipped_problems() -> Iterator[LabelledProblem]:
    """Return the problems that ship with the router, most of which it was fitted on."""
    for item in load_corpus():
        yield LabelledProblem(
            item.text,
            _label_of(item),
            item.stratum,
            is_shipped=True,
            is_held_back=item.is_held_back,
        )


def _label_of(item: Utterance) -> Label:
    if item.kind == "route":
        return parse_label(",".join(SHORT[name] for name in item.skills))
    return parse_label(f"{item.kind}:{item.label[1:]}")


def corrected_problems(context: Context) -> Iterator[LabelledProblem]:
    """Return what was asked and corrected in this workspace."""
    for asked in recall(context):
        if asked.correction is not None:
            yield LabelledProblem(asked.text, asked.correction, "corrected", asked.answers)


def problems_of_file(path: Path) -> Iterator[LabelledProblem]:
    """Read labelled problems, one JSON object per line.

    `text` or `turns` is the problem, `answer` is written as for `fairlead ask --correct`, and
    `stratum` is free.

    Raises:
        NotFoundError: There is no such file.
        DataError: It cannot be read, or a line is not a labelled problem.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as exc:
        raise NotFoundError(
            f"there is no file {path}", hint=f"give a file of lines like {_FORM}"
        ) from exc
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read: {exc}", hint=f"write lines like {_FORM}") from exc
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _problem(line, f"line {number} of {path}", path.stem)


def _problem(line: str, where: str, stratum: str) -> LabelledProblem:
    try:
        entry: Any = json.loads(line)
        turns = entry["turns"] if "turns" in entry else [entry["text"]]
        text, *answers = (str(turn) for turn in turns)
        label = parse_label(str(entry["answer"]))
    except UsageError as exc:
        raise DataError(f"{where}: {exc.message}", hint=exc.hint) from exc
    except (ValueError, TypeError, KeyError) as exc:
        raise DataError(
            f"{where} is no labelled problem: {exc}", hint=f"write it like {_FORM}"
        ) from exc
    return LabelledProblem(text, label, str(entry.get("stratum", stratum)), tuple(answers))
