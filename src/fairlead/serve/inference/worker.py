"""One of several workers: a process that inherits its sockets and reads its plan from stdin.

Started by the supervisor as `python -m fairlead.serve.inference.worker`; of no use to people.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import FairleadError
from fairlead.serve.inference.accepting import OpenCounts
from fairlead.serve.inference.bus import WorkerBus, say_failed
from fairlead.serve.inference.plan import Site, plan_of
from fairlead.serve.inference.server import serve_here

__all__ = ["run_worker"]

_BEAT_S = 0.5


def run_worker(document: dict[str, Any]) -> int:
    """Serve until the supervisor says to stop, or is gone.

    Args:
        document: Of `document_of`, with what the supervisor adds.

    Returns:
        The exit code.
    """
    # Ctrl-C reaches the whole group of processes; the supervisor decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=document["bus"])
    listener = socket.socket(fileno=document["listeners"]["http"])
    grpc = document["listeners"].get("grpc")
    bus = WorkerBus(document["n_workers"])
    endpoint = Endpoint.model_validate(document["endpoint"])
    plan = plan_of(document)

    async def join(found: Endpoint) -> None:
        end.setblocking(False)
        await bus.open(end)
        await bus.join({"arms": found.arms, "bundles": found.bundles})
        _beat(bus)

    site = Site(
        listener,
        endpoint,
        None if grpc is None else socket.socket(fileno=grpc),
        bus,
        number=document["worker"],
        is_replacement=document["is_replacement"],
        limits=document["limits"],
        counts=OpenCounts(document["counts"], document["worker"]),
        grpc_counts=OpenCounts(document["counts"], document["worker"], listener=1),
        outcomes=document["outcomes"],
        before_listening=join,
        watch_stdin=lambda on_end: _end_with_supervisor(on_end, plan.config.drain_timeout_s),
    )
    try:
        serve_here(plan, site)
    except FairleadError as exc:
        say_failed(end, exc)
        return 2
    return 0


def _beat(bus: WorkerBus) -> None:
    """Tell the supervisor again and again that the event loop turns."""
    bus.beat()
    asyncio.get_running_loop().call_later(_BEAT_S, _beat, bus)


def _end_with_supervisor(on_end: Callable[[], object], drain_timeout_s: float) -> None:
    """Drain once standard input ends, which it does when the supervisor dies; then end anyhow."""

    def wait() -> None:
        with suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        last_resort = threading.Timer(drain_timeout_s + 1.0, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()
        with suppress(RuntimeError):  # The event loop may have ended before.
            on_end()

    threading.Thread(target=wait, name="fairlead-stdin", daemon=True).start()


def _read_plan() -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            sys.exit(1)
        line += piece
    document: dict[str, Any] = json.loads(line)
    return document


if __name__ == "__main__":
    sys.exit(run_worker(_read_plan()))
