"""CPU that the server spends per request, with everything on and with everything off.

    python benchmarks/serving/ours.py [--rounds 3] [--seconds 3] [--connections 1 16 64]

Needs `wrk`. Servers of one small model (64 floats in, 10 scores out) run side by side and take
turns; what counts is the server's CPU time per request from /proc, which is stable on a machine
that others use. One of them never polls for the next request of a lone client. Beside them stands
a floor: uvloop and a protocol that answers whatever it reads with the same bytes, with no HTTP and
no model behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from log_and_metrics import cpu_s, request_bytes, tiny_bundle

from fairlead.backends.endpoint import spawn_server
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

OFF = {"log_predictions": False, "metrics": False}
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("%s", "rb")
wrk.body = file:read("*all")
file:close()
"""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def press(url: str, pid: int, script: Path, connections: int, seconds: float) -> dict[str, float]:
    """Send requests for a while; return rps, CPU µs per request and latency percentiles in ms."""
    before = cpu_s(pid)
    words = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "--timeout",
        "30s",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    spent = cpu_s(pid) - before
    count = int(re.search(r"(\d+) requests in", text)[1])
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    found = {"rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])}
    found["cpu_us"] = spent / count * 1e6
    for name in ("50", "99"):
        number, unit = re.search(rf"\s{name}%\s+([\d.]+)(us|ms|s|m)", text).groups()
        found[f"p{name}_ms"] = float(number) * _UNITS[unit]
    return found


class Floor(asyncio.Protocol):
    """Answers every read with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, _: bytes) -> None:
        self.transport.write(ANSWER)


ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 300\r\n\r\n" + b" " * 300
)


def serve_floor(wire: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", 0)
        wire.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def floor() -> Iterator[tuple[str, int]]:
    """Run the floor; yields its address and its process id."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve_floor, args=(theirs,), daemon=True
    )
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/", process.pid
    finally:
        process.kill()


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    options = parser.parse_args()
    variants = {
        "all on": {},
        "always asleep": {"busy_poll_us": 0},
        "no log": {"log_predictions": False},
        "all off": OFF,
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        bundle = tiny_bundle(root)
        workspace = Workspace.open(Settings.load(home=root / "home"))
        (root / "body.json").write_bytes(request_bytes().split(b"\r\n\r\n", 1)[1])
        script = root / "body.lua"
        script.write_text(LUA % (root / "body.json"))
        servers = {
            name: stack.enter_context(
                spawn_server(bundle, workspace=workspace, name=f"tiny{place}", settings=settings)
            )
            for place, (name, settings) in enumerate(variants.items())
        }
        targets = {
            name: (f"{server.endpoint.url}/v2/models/tiny{place}/infer", server.process.pid)
            for place, (name, server) in enumerate(servers.items())
        }
        targets["floor"] = stack.enter_context(floor())
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for connections in options.connections:
                for name, (url, pid) in targets.items():
                    measured = press(url, pid, script, connections, options.seconds)
                    found.setdefault((name, connections), []).append(measured)
        print("| server | connections | rps | CPU µs | p50 ms | p99 ms | RSS MB |")
        print("|---|---|---|---|---|---|---|")
        for (name, connections), rounds in found.items():
            mid = {key: statistics.median(item[key] for item in rounds) for key in rounds[0]}
            memory = resident_mb(targets[name][1])
            print(
                f"| {name} | {connections} | {mid['rps']:.0f} | {mid['cpu_us']:.1f} "
                f"| {mid['p50_ms']:.2f} | {mid['p99_ms']:.2f} | {memory:.0f} |"
            )


if __name__ == "__main__":
    main()
