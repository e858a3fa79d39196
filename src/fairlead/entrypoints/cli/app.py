"""The root of the command line, and the one place where an error becomes text and exit code."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer
from typer.exceptions import TyperException

from fairlead import __version__
from fairlead.core.errors import FairleadError
from fairlead.core.files import refused_by_system
from fairlead.entrypoints.cli.ask import ask_command
from fairlead.entrypoints.cli.front import plan_command, run_command
from fairlead.entrypoints.cli.mcp import mcp_command
from fairlead.entrypoints.cli.pack import pack_command
from fairlead.entrypoints.problem import problem_of

__all__ = ["build_app", "main"]

_INTERRUPTED = 130
_TERMINATED = 143
_GO_ON = "run the same command again to go on"
_LONGEST = 1200
"""Characters of a message that are shown."""

_GROUPS: Final = ("demo", "guides", "router", "optimize", "serve", "mlops", "observe")
"""Modules beside this one that hold a group of commands."""
_SINGLE: Final[dict[str, Callable[..., None]]] = {
    "ask": ask_command,
    "plan": plan_command,
    "run": run_command,
    "pack": pack_command,
    "mcp": mcp_command,
}
"""Commands at the root."""


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"fairlead {__version__}")
        raise typer.Exit


def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Describe a production problem, get a route, and run it on your own model."""


def build_app(words: Sequence[str] = ()) -> typer.Typer:
    """Build the command line, or as much of it as these words need.

    Args:
        words: What the user typed; without any the command line is whole.
    """
    app = typer.Typer(
        name="fairlead",
        help="Take a trained model to production and keep it there.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(root)
    known = (*_SINGLE, *_GROUPS)
    for name in words[:1] if words and words[0] in known else known:
        if name in _SINGLE:
            app.command(name)(_SINGLE[name])
        else:
            module = import_module(f"fairlead.entrypoints.cli.{name}")
            app.add_typer(module.app, name=name)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with the right exit code."""
    # What is imported stays: looking for garbage among it costs a tenth of a short command.
    gc.set_threshold(20_000)
    _mend_streams()
    words = sys.argv[1:] if arguments is None else arguments
    own = words[: words.index("--")] if "--" in words else words
    kept = [word for word in own if word != "--debug"] + words[len(own) :]
    with _unwinding_on_sigterm() as ended:
        code = _run(kept, is_debug="--debug" in own)
    if code == _INTERRUPTED:  # Ours, or what Typer makes of Ctrl-C.
        code = _TERMINATED if ended else _INTERRUPTED
        _say("terminated" if ended else "interrupted", _GO_ON, code)
    if arguments is None:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End the process at once when all is done, instead of taking the interpreter apart.

    With large libraries loaded that takes the better part of a second of CPU time, half a minute
    on a busy machine, in which a caller with a time limit takes a command for hung that has said
    everything; and threads of such libraries have been known to wait for each other there. Returns
    where something is left to wait for, or an output cannot be written.
    """
    others = [one for one in threading.enumerate() if one is not threading.main_thread()]
    if any(not one.daemon for one in others):
        return
    try:
        atexit._run_exitfuncs()  # the interpreter offers no other way
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


@contextmanager
def _unwinding_on_sigterm() -> Iterator[list[int]]:
    """Let SIGTERM unwind like Ctrl-C, so that what was begun is cleared up; gives the signals."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


def _mend_streams() -> None:
    """Replace closed streams, and write what the terminal cannot show as an escape."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(words: list[str], *, is_debug: bool) -> int:
    try:
        result = build_app(words)(words, standalone_mode=False, prog_name="fairlead")
    except typer.Exit as exc:
        return int(exc.exit_code)
    except TyperException as exc:
        return _misused(exc)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        return 141
    except Exception as exc:
        if is_debug:
            raise
        return _explain(exc)
    return result if isinstance(result, int) else 0


def _misused(error: TyperException) -> int:
    describe = getattr(error, "format_message", error.__str__)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{describe()}\n")
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "fairlead"
    return _say(describe(), f"`{command} --help` lists what it takes", 2)


def _explain(error: Exception) -> int:
    if isinstance(error, FairleadError):
        return _say(error.message, error.hint, problem_of(error).exit_code)
    if isinstance(error, OSError):
        return _explain(refused_by_system(error))
    if isinstance(error, MemoryError):
        return _say("there is not enough memory", "give fewer rows, or use a larger machine", 2)
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return _say(f"unexpected {text}", "run it again with --debug and report the trace", 70)


def _say(message: str, hint: str, code: int) -> int:
    with suppress(OSError):  # Nobody may be left to read it; the exit code still tells.
        sys.stderr.write(f"error: {_printable(message)}\n\nhint: {_printable(hint)}\n")
        sys.stderr.flush()
    return code


def _printable(text: str) -> str:
    """Cut what a person cannot read, and escape what would steer a terminal."""
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 4 :]}"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in shown)
