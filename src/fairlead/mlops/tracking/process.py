"""Runs a command, passes its output on, and keeps the end of it."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from fairlead.core.errors import NotFoundError, UsageError

__all__ = ["Finished", "Output", "run_command"]

Output = Callable[[Literal["stdout", "stderr"], bytes], None]
"""Receives what the command writes, as it writes it."""

_PIECE = 8192
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended.

    Attributes:
        exit_code: Negative: the number of the signal that ended it.
        stdout_tail: End of what it wrote.
        stderr_tail: End of what it wrote.
        is_interrupted: Whether the user pressed Ctrl-C.
    """

    exit_code: int
    stdout_tail: str
    stderr_tail: str
    is_interrupted: bool


class _Tail:
    """Keeps the last bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        while self._pieces and self._size - len(self._pieces[0]) >= self._limit:
            self._size -= len(self._pieces.popleft())

    def text(self) -> str:
        whole = b"".join(self._pieces)
        return whole[max(0, len(whole) - self._limit) :].decode("utf-8", "replace")


def run_command(
    command: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    tail_bytes: int,
    output: Output | None,
) -> Finished:
    """Run a command to its end.

    Args:
        command: Program and arguments; no shell reads them.
        folder: Working directory.
        environ: The whole environment of the command.
        tail_bytes: How much of the end of each stream is kept.
        output: Receives what the command writes.

    Raises:
        NotFoundError: There is no such program.
        UsageError: The program cannot be started.
    """
    process = _start(command, folder, environ)
    tails = {"stdout": _Tail(tail_bytes), "stderr": _Tail(tail_bytes)}
    readers = [
        threading.Thread(target=_pump, args=(stream, name, tails[name], output), daemon=True)
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
    ]
    for reader in readers:
        reader.start()
    is_interrupted = False
    try:
        process.wait()
    except KeyboardInterrupt:
        # The terminal sent the signal to the command too; it may clean up before it ends.
        is_interrupted = True
        _stop(process)
    except BaseException:
        process.terminate()
        _stop(process)
        raise
    for reader in readers:
        # A grandchild that lives on may hold the pipes open; the command itself has ended.
        reader.join(timeout=2.0)
    return Finished(
        process.returncode, tails["stdout"].text(), tails["stderr"].text(), is_interrupted
    )


def _start(
    command: Sequence[str], folder: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 (running the user's command is what this is for)
            list(command),
            cwd=folder,
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as exc:
        raise NotFoundError(
            f"there is no program {command[0]!r}", hint="check the words after `--`"
        ) from exc
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"{command[0]!r} cannot be started: {exc}", hint="check the words after `--`"
        ) from exc


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pump(
    stream: IO[bytes], name: Literal["stdout", "stderr"], tail: _Tail, output: Output | None
) -> None:
    with stream:
        while piece := stream.read1(_PIECE):  # type: ignore[attr-defined]
            tail.add(piece)
            if output is not None:
                output(name, piece)
