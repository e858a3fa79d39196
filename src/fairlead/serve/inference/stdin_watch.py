"""Hears when standard input ends, which it does when the parent dies."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["watch_stdin"]

_log = logging.getLogger(__name__)


def watch_stdin(on_end: Callable[[], object]) -> None:
    """Call back when standard input ends, which it does when the parent dies."""

    def wait() -> None:
        # Not `sys.stdin.read`: its lock would be held when the interpreter shuts down.
        with suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        try:
            on_end()
        except RuntimeError:
            _log.debug("the server had ended before its standard input did")

    threading.Thread(target=wait, name="fairlead-stdin", daemon=True).start()
