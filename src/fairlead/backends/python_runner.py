"""Python classes and functions from a bundle, executed; implements the ports of runners.

    class Sentiment:
        inputs = {"text": "string[?]"}            # optional: else the columns of the rows
        thread_safe = False                       # optional: else calls come one by one

        def load(self, context): …                # optional; `context / "vocab.txt"` is a file
        def predict(self, inputs): …              # dict of arrays in, dict of arrays out

`predict` may be a coroutine, or a generator that yields the answer in pieces. A plain function of
one argument is a model as well.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from fairlead.backends.code_import import import_entry, importing_from, reason_of
from fairlead.core.errors import FairleadError, ModelCodeError, ModelError
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import Signature, conform

__all__ = [
    "CODE_FOLDER",
    "INCLUDED_FOLDER",
    "CodeObject",
    "ModelContext",
    "PythonRunner",
    "join_pieces",
]

CODE_FOLDER = "code"
"""Folder of a bundle that holds its Python files."""
INCLUDED_FOLDER = "artifacts"
"""Folder of a bundle that holds the files that its code loads."""

_log = logging.getLogger(__name__)
_HINT = "the server's log has the trace; mend the code and pack it again"


@dataclass(frozen=True)
class ModelContext:
    """What `load` is told; it also works as the path of the folder with the packed files.

    Attributes:
        path: Folder of the files that were packed with `--include`.
        threads: CPU threads that the model may use.
    """

    path: Path
    threads: int = 1

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


class CodeObject:
    """A class or function from a bundle, loaded and ready to be called."""

    def __init__(self, code: Path, entry: str, context: ModelContext) -> None:
        """Import the code, make the object and let it load.

        Raises:
            ModelError: The entry does not exist, is no model, or a library is missing.
            ModelCodeError: The code broke.
        """
        target = import_entry(code, entry)
        self.name = entry.rpartition(":")[2]
        self.target = target
        self._close: Any = None
        if not isinstance(target, type):
            self.call = target
            return
        with importing_from(code):
            made = self._guarded(f"{self.name}()", target)
            load = getattr(made, "load", None)
            if callable(load):
                takes = inspect.signature(load).parameters
                self._guarded(f"{self.name}.load", load, *((context,) if takes else ()))
        self.call = getattr(made, "predict", None)
        self._close = getattr(made, "close", None)
        if not callable(self.call):
            raise ModelError(
                f"`{self.name}` has no method `predict`",
                hint="give the class `predict(self, inputs)`: dict of arrays in and out",
            )
        self.name = f"{self.name}.predict"

    @property
    def is_streaming(self) -> bool:
        """Whether it yields its answer in pieces."""
        return inspect.isgeneratorfunction(self.call) or inspect.isasyncgenfunction(self.call)

    def close(self) -> None:
        """Let the object free what it holds."""
        if callable(self._close):
            self._guarded(f"{self.name.partition('.')[0]}.close", self._close)
        self.call = self.target = self._close = None

    def _guarded(self, name: str, function: Any, *arguments: Any) -> Any:  # noqa: ANN401
        try:
            answer = function(*arguments)
            return asyncio.run(answer) if inspect.iscoroutine(answer) else answer
        except (Exception, SystemExit) as exc:
            _log.error("%s failed", name, exc_info=exc)
            raise ModelCodeError(f"`{name}` failed: {reason_of(exc)}", hint=_HINT) from exc


class PythonRunner:
    """Python code from a bundle in memory; implements the ports `Runner` and `StreamingRunner`.

    A class that does not call itself `thread_safe` is called by one thread at a time.
    """

    def __init__(self, made: CodeObject, signature: Signature) -> None:
        """Put a signature before loaded code."""
        self._made = made
        self._signature = signature
        is_safe = bool(getattr(made.target, "thread_safe", False))
        lock: AbstractContextManager[Any] = threading.Lock()
        self._turn = nullcontext() if is_safe else lock
        self._loop = _LoopThread()

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, batch dimension first."""
        return self._signature

    @property
    def runs_foreign_code(self) -> bool:
        """How long a call takes cannot be known, so it never runs in a server's event loop."""
        return True

    @property
    def is_streaming(self) -> bool:
        """Whether the code yields its answer in pieces."""
        return self._made.is_streaming

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the code on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The code refused the input with a `ValueError`, or gave no arrays.
            ModelCodeError: The code broke.
        """
        ready = conform(feeds, self._signature)
        if self.is_streaming:
            return join_pieces(list(self._pieces(ready)))
        with self._turn:
            try:
                answer = self._made.call(ready)
                if inspect.iscoroutine(answer):
                    answer = self._loop.wait_for(answer)
            except (Exception, SystemExit) as exc:
                raise self._told(exc) from exc
        return self._checked(answer, ready)

    def stream(self, feeds: Feeds) -> Iterator[dict[str, Array]]:
        """Execute the code on one batch and yield its answer in pieces.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: See `run`.
        """
        yield from self._pieces(conform(feeds, self._signature))

    def close(self) -> None:
        """Free the object and its event loop."""
        self._made.close()
        self._loop.close()

    def _pieces(self, ready: dict[str, Array]) -> Iterator[dict[str, Array]]:
        with self._turn:
            answer: Any = self._made.call(ready)
            pieces = self._loop.iterate(answer) if hasattr(answer, "__aiter__") else answer
            pieces = cast("Generator[Any, None, None]", pieces)
            try:
                while True:
                    try:
                        piece = next(pieces)
                    except StopIteration:
                        return
                    except (Exception, SystemExit) as exc:
                        raise self._told(exc) from exc
                    yield self._checked(piece, ready)
            finally:
                pieces.close()

    def _told(self, error: BaseException) -> FairleadError:
        """Turn what the code raised into what a caller may read.

        A `ValueError` is how code refuses an input, so its words are meant for the caller; those
        of any other error may speak of the machine and stay in the log.
        """
        name = self._made.name
        if isinstance(error, FairleadError):
            return error
        if isinstance(error, ValueError):
            return ModelError(f"`{name}` refused the input: {reason_of(error)}", hint="change it")
        _log.error("%s failed", name, exc_info=error)
        return ModelCodeError(f"`{name}` failed with {type(error).__name__}", hint=_HINT)

    def _checked(self, answer: Any, ready: dict[str, Array]) -> dict[str, Array]:  # noqa: ANN401
        if not isinstance(answer, Mapping):
            answer = {"prediction": answer}
        try:
            outputs = {str(name): _as_array(value) for name, value in answer.items()}
        except (ValueError, TypeError) as exc:
            raise ModelCodeError(
                f"`{self._made.name}` gave what is no array: {reason_of(exc)}", hint=_HINT
            ) from exc
        wanted = [spec.name for spec in self._signature.outputs]
        missing = [name for name in wanted if name not in outputs]
        if missing and not self.is_streaming:
            raise ModelCodeError(
                f"`{self._made.name}` gave {sorted(outputs)}, but not `{missing[0]}`", hint=_HINT
            )
        rows = len(next(iter(ready.values()))) if ready else 0
        for name, array in outputs.items():
            if array.ndim == 0 or (rows and len(array) != rows):
                raise ModelCodeError(
                    f"`{self._made.name}` gave `{name}` of shape {list(array.shape)} "
                    f"for {rows} rows",
                    hint="give one value, or one array, per row",
                )
        return {name: outputs[name] for name in wanted if name in outputs} if wanted else outputs


def _as_array(value: Any) -> Array:  # noqa: ANN401 (whatever code gives)
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return array.astype(object)
    return array


def join_pieces(pieces: list[dict[str, Array]]) -> dict[str, Array]:
    """Join the pieces of a streamed answer.

    Text is joined row by row, other arrays along their second dimension; of outputs with one
    number per row the last piece counts.

    Raises:
        ModelCodeError: There is no piece, or pieces do not fit together.
    """
    if not pieces:
        raise ModelCodeError("the model gave an empty stream", hint=_HINT)
    joined: dict[str, Array] = {}
    for piece in pieces:
        for name, array in piece.items():
            before = joined.get(name)
            joined[name] = array if before is None else _joined(name, before, array)
    return joined


def _joined(name: str, one: Array, other: Array) -> Array:
    if one.dtype.kind == "O":
        return np.add(one, other)
    if one.ndim == 1:
        return other
    try:
        return np.concatenate([one, other], axis=1)
    except ValueError as exc:
        raise ModelCodeError(
            f"pieces of `{name}` do not fit together: {one.shape} and {other.shape}", hint=_HINT
        ) from exc


class _LoopThread:
    """An event loop in a thread of its own, started when the first coroutine comes."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        return asyncio.run_coroutine_threadsafe(work, self._running()).result()

    def iterate(self, source: AsyncIterator[Any]) -> Iterator[Any]:
        async def step() -> tuple[bool, Any]:
            try:
                return True, await anext(source)
            except StopAsyncIteration:
                return False, None

        try:
            while True:
                has_more, piece = self.wait_for(step())
                if not has_more:
                    return
                yield piece
        finally:
            if inspect.isasyncgen(source):
                self.wait_for(source.aclose())

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._loop = self._thread = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="fairlead-model-loop", daemon=True
                )
                self._thread.start()
            return self._loop
