"""Many problems at once: JSON lines in, one plain dictionary per answer out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairlead.core.errors import UsageError
from fairlead.router.dialogue import Answer, ask
from fairlead.router.scorer import Weights

__all__ = ["ask_batch"]


def ask_batch(
    lines: Iterable[str | Mapping[str, Any]], *, weights: Weights | None = None
) -> Iterator[dict[str, Any]]:
    """Answer many problems, each on its own.

    Args:
        lines: `{"id", "text"}` for one problem, or `{"id", "turns": [text, answer, ...]}` for a
            dialogue, as JSON texts or as mappings. Empty lines are skipped.
        weights: The scorer's weights; those that ship when None.

    Yields:
        `{"id", "kind", "skills", "redirect_to", "ambiguity", "confidence", ...}` per answer. Turn
        k of a dialogue has the id `ID#k`, counted from 1. A text that cannot be answered gives
        `kind` "error" with `error` and `hint` instead, and the other lines go on.

    Raises:
        UsageError: A line is not a JSON object of one of the two forms.

    Examples:
        >>> [found] = ask_batch(['{"id": "a", "text": "my inference is slow"}'])
        >>> found["kind"], found["ambiguity"]
        ('clarify', 'model-or-infrastructure')
    """
    for number, line in enumerate(lines, 1):
        if isinstance(line, str) and not line.strip():
            continue
        name, turns, is_dialogue = _parse(line, number)
        for turn in range(1, len(turns) + 1):
            key = f"{name}#{turn}" if is_dialogue else name
            try:
                yield _as_dict(key, _after(turns[:turn], weights))
            except UsageError as exc:
                yield _as_error(key, exc)


def _parse(line: str | Mapping[str, Any], number: int) -> tuple[str, list[str], bool]:
    entry = _load(line, number) if isinstance(line, str) else line
    name = entry.get("id") if isinstance(entry, Mapping) else None
    # JSON's true and false are numbers to Python.
    if isinstance(entry, Mapping) and isinstance(name, str | int) and not isinstance(name, bool):
        text, turns = entry.get("text"), entry.get("turns")
        if isinstance(text, str) and turns is None:
            return str(name), [text], False
        if text is None and isinstance(turns, list) and turns and _are_texts(turns):
            return str(name), turns, True
    raise UsageError(
        f"line {number} is neither a problem nor a dialogue",
        hint='write {"id": "1", "text": "..."} or {"id": "1", "turns": ["...", "..."]}',
    )


def _load(line: str, number: int) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise UsageError(
            f"line {number} is not JSON: {exc}", hint="write one JSON object per line"
        ) from exc


def _are_texts(turns: list[Any]) -> bool:
    return all(isinstance(turn, str) for turn in turns)


def _after(turns: list[str], weights: Weights | None) -> Answer:
    """Return the answer after these turns; what answers no question is read as more text."""
    text, given = turns[0], list[str]()
    answer = ask(text, weights=weights)
    for turn in turns[1:]:
        try:
            answer = ask(text, answers=(*given, turn), weights=weights)
            given.append(turn)
        except UsageError:
            text, given = f"{text}\n{turn}", []
            answer = ask(text, weights=weights)
    return answer


def _as_dict(key: str, answer: Answer) -> dict[str, Any]:
    return {
        "id": key,
        "kind": answer.kind,
        "skills": list(answer.skill_ids),
        "redirect_to": answer.redirect_to,
        "ambiguity": answer.ambiguity,
        "confidence": round(answer.confidence, 4),
        "also_consider": list(answer.also_consider),
        "also_consult": [item.id for item in answer.also_consult],
        "question": answer.question,
        "options": [option.id for option in answer.options],
        "rule": answer.rule,
        "runner_up": answer.runner_up.answer if answer.runner_up else None,
        "spans": [[span.start, span.end, span.says] for span in answer.spans],
    }


def _as_error(key: str, error: UsageError) -> dict[str, Any]:
    return {
        "id": key,
        "kind": "error",
        "skills": [],
        "redirect_to": None,
        "ambiguity": None,
        "confidence": 0.0,
        "error": error.message,
        "hint": error.hint,
    }
