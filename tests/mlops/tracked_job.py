"""A run that is killed in the middle of its work, for tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from fairlead.api.context import Context
from fairlead.api.tracking import tracked


def log_and_die(home: str) -> None:
    """Log three values and die."""
    context = Context.open(home=Path(home))
    with tracked(params={"lr": 0.1}, context=context) as run:
        for step in range(3):
            run.log_metric("loss", 1 / (step + 1), step=step)
        os.kill(os.getpid(), signal.SIGKILL)


def log_and_hang(home: str, started: str) -> None:
    """Log a value, say so, and wait to be killed."""
    context = Context.open(home=Path(home))
    with tracked(context=context) as run:
        run.log_metric("loss", 0.5)
        Path(started).touch()
        signal.pause()
