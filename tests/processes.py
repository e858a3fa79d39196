"""Worker processes for tests of concurrency and crashes: quick to start, safe to kill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

_PRELOADED = ["fairlead.backends.sql_registry", "fairlead.backends.dbos", "dbos"]


@cache
def _context() -> Any:
    # A fork of a server that holds the imports and no threads; the tests' own process has both.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """Start a function of a module in a process of its own."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    return process


def run(function: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a process of its own and return its exit code; -9 when it was killed."""
    return finish(start(function, *arguments))


def finish(process: Any) -> int:
    """Wait for a process and return its exit code."""
    process.join(60)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the process did not end within 60 s")
    code = int(process.exitcode)
    process.close()
    return code


def run_all(calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> list[int]:
    """Run several functions at once and return their exit codes."""
    processes = [start(function, *arguments) for function, arguments in calls]
    return [finish(process) for process in processes]
