"""`fairlead ask --batch`: many problems, one line each."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

from fairlead.core.errors import NotFoundError, UsageError
from fairlead.entrypoints.cli.door import show, talk

if TYPE_CHECKING:
    from fairlead.api.context import Context

__all__ = ["answer_batch"]

_SHOWN_ERRORS = 20


def answer_batch(source: str, *, as_json: bool) -> None:
    """Answer a file of problems, one line each; bad lines are named and do not stop the others.

    Args:
        source: Path of JSON lines, or - for stdin.
        as_json: One JSON line per answer; else one line for people.

    Raises:
        NotFoundError: There is no such file.
        UsageError: A line could not be answered; the others were.
    """
    from fairlead.api.routing import ask_lines

    n_bad = 0
    with _lines_of(source) as lines:
        for found in ask_lines(lines, context=_taught()):
            if isinstance(found, UsageError):
                n_bad += 1
                if n_bad <= _SHOWN_ERRORS:
                    talk().print(f"error: {found.message}", markup=False)
                continue
            n_bad += found["kind"] == "error"
            _show_line(found, as_json=as_json)
    if n_bad:
        raise UsageError(
            f"{n_bad} line{'s' if n_bad > 1 else ''} of {source} could not be answered",
            hint='write {"id": "1", "text": "..."} or {"id": "1", "turns": ["...", "..."]}; '
            "the other lines were answered",
        )


def _taught() -> Context | None:
    """Return the workspace when it has taught the router something; never create one."""
    from fairlead.api.context import Context
    from fairlead.core.settings import Settings

    taught = Settings.load().home / "router" / "scorer.npz"
    return Context.open() if taught.is_file() else None


def _show_line(found: dict[str, object], *, as_json: bool) -> None:
    # An id may hold half a surrogate pair, which no terminal can print.
    found["id"] = str(found["id"]).encode(errors="replace").decode()
    if as_json:
        show(found)
        return
    what = found.get("redirect_to") or found.get("ambiguity") or found.get("error")
    skills = found["skills"]
    named = " + ".join(map(str, skills)) if isinstance(skills, list) and skills else what
    typer.echo(f"{found['id']}\t{found['kind']}\t{named}\t{found['confidence']:.2f}")


def _lines_of(source: str) -> AbstractContextManager[BinaryIO]:
    if source == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except FileNotFoundError as exc:
        raise NotFoundError(
            f"there is no file {source}", hint="give a file of JSON lines, or - for stdin"
        ) from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise UsageError(
            f"{source[:80]} cannot be read: {reason}", hint="give a file of JSON lines"
        ) from exc
