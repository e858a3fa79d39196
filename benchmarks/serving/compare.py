"""Serve one model with Fairlead and its peers, load them in turns, and print one table.

    python benchmarks/serving/compare.py --seconds 3 --rounds 3
    python benchmarks/serving/compare.py --model minilm.onnx --tokens 32 --connections 16,64

Single-row JSON requests from `wrk`; one worker each where a name does not say more; every server
is stopped (SIGSTOP) while another has its turn. CPU is that of the server's processes, memory their
proportional share. What the model costs without any server is measured in the same rounds.
Each peer lives in an environment of its own under --cache, installed at the first run.
Triton needs `--headers DIR`, see adapters/triton.py. A peer that cannot start is told, not hidden.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from adapters import ADAPTERS
from adapters.base import Adapter, Model, Started

MARK = "BENCHMARK_SERVER"
BATCHES = (1, 4, 8, 16, 32, 64)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LUA = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("{body}")
wrk.body = file:read("*a")
file:close()
"""


@dataclass
class Turn:
    """What one turn of load found."""

    rate: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass
class Server:
    """A running server and what was found of it."""

    adapter: Adapter
    started: Started
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    memory_mb: float = 0.0

    def pids(self) -> list[int]:
        """Return the server's processes: all that inherited its mark."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes, ended children included."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += sum(map(int, words[11:15]))
        return total * TICK_S

    def pss_mb(self) -> float:
        """Return its memory in MB, pages that processes share counted once."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+)", text, re.M).group(1))
        return total / 1024

    def start(self) -> None:
        """Start it and wait until it answers."""
        surroundings = {**os.environ, **self.started.env, MARK: str(self.folder)}
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.started.command, env=surroundings, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        limit = time.monotonic() + 90
        while time.monotonic() < limit and self.process.poll() is None:
            with (
                suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(self.started.ready, timeout=2) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"did not become ready; see {self.folder / 'log.txt'}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End it."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            if self.process is not None:
                self.process.wait(5)
        self.signal(signal.SIGKILL)


def tiny(folder: Path) -> Model:
    """Write the 64-64-10 perceptron."""
    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((draw.standard_normal(shape) * 0.1).astype("f4"), name)

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]), helper.make_node("Relu", ["h"], ["a"]),
         helper.make_node("Gemm", ["a", "w2", "b2"], ["l"]),
         helper.make_node("Softmax", ["l"], ["y"], axis=1)],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [weight("w1", 64, 64), weight("b1", 64), weight("w2", 64, 10), weight("b2", 10)],
    )  # fmt: skip
    path = folder / "tiny.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return Model(path, "tiny", {"x": ("FP32", (64,))}, {"y": ("FP32", (10,))})


def encoder(path: Path, tokens: int) -> Model:
    """Describe a sentence encoder: INT64 inputs (rows, tokens), float outputs; -1 is not known."""
    graph = onnx.load(path, load_external_data=False).graph
    inputs = {i.name: ("INT64", (tokens,)) for i in graph.input}
    outputs = {}
    for output in graph.output:
        rank = len(output.type.tensor_type.shape.dim)
        width = output.type.tensor_type.shape.dim[rank - 1].dim_value or -1
        outputs[output.name] = ("FP32", (tokens, width) if rank == 3 else (width,))
    return Model(path.resolve(), path.stem, inputs, outputs)


def bodies(model: Model, folder: Path) -> dict[str, Path]:
    """Write one request in both forms; returns form → wrk script."""
    draw = random.Random(1)
    rows: dict[str, list[float]] = {}
    for name, (kind, shape) in model.inputs.items():
        width = int(np.prod(shape))
        if kind == "INT64":
            rows[name] = [1 if "mask" in name else 0 if "type" in name
                          else draw.randrange(1000, 20000) for _ in range(width)]  # fmt: skip
        else:
            rows[name] = [round(draw.gauss(0, 1), 4) for _ in range(width)]
    v2 = {"inputs": [{"name": name, "shape": [1, *shape], "datatype": kind, "data": rows[name]}
                     for name, (kind, shape) in model.inputs.items()]}  # fmt: skip
    plain = {name: [row] for name, row in rows.items()}
    scripts = {}
    for form, body in (("v2", v2), ("plain", plain)):
        (folder / f"{form}.json").write_text(json.dumps(body))
        scripts[form] = folder / f"{form}.lua"
        scripts[form].write_text(LUA.format(body=folder / f"{form}.json"))
    return scripts


def load(server: Server, script: Path, connections: int, seconds: float) -> Turn:
    """Let wrk load a server and read what it says."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "--latency",
             "-s", str(script), server.started.url]  # fmt: skip
    before = server.cpu_s()
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    used = server.cpu_s() - before
    found = re.search(r"(\d+) requests in", said)
    count = max(1, int(found.group(1)))
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said
    )
    return Turn(
        rate=float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1)),
        cpu_us=used / count * 1e6,
        p50_ms=_ms(re.search(r"50%\s+([\d.]+)(us|ms|s)", said)),
        p99_ms=_ms(re.search(r"99%\s+([\d.]+)(us|ms|s)", said)),
        errors=(int(errors.group(1)) if errors else 0)
        + (sum(map(int, broken.groups())) if broken else 0),
    )


def _ms(found: re.Match[str] | None) -> float:
    return float(found.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found.group(2)]


def free_port() -> int:
    """Return the first of four free ports in a row, as good as can be known."""
    while True:
        port = random.randrange(20000, 30000)
        with suppress(OSError):
            for offset in range(4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
            return port


def prepared(names: list[str], model: Model, work: Path, cache: Path) -> Iterator[Server]:
    """Install, write and start the servers; one that cannot is told and left out."""
    for name in names:
        adapter = ADAPTERS[name]
        folder = work / re.sub(r"\W+", "-", name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            python = adapter.python(cache)
            server = Server(adapter, adapter.prepare(adapter, python, model, folder, free_port()),
                            folder)  # fmt: skip
            server.start()
        except (OSError, RuntimeError, subprocess.CalledProcessError) as exc:
            print(f"left out: {name}: {exc}", file=sys.stderr)
            continue
        print(f"ready: {name}", file=sys.stderr)
        if adapter.can_pause:
            server.signal(signal.SIGSTOP)
        else:
            server.stop()
        yield server


class InProcess:
    """The ceiling: the model in this process, a run of one thread on every core, no server."""

    def __init__(self, model: Model) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(model.path), options)
        draw = np.random.default_rng(1)
        self.row = {
            name: draw.standard_normal((1, *shape)).astype("f4") if kind == "FP32"
            else np.ones((1, *shape), "i8") if "mask" in name
            else np.zeros((1, *shape), "i8") if "type" in name
            else draw.integers(1000, 20000, (1, *shape))
            for name, (kind, shape) in model.inputs.items()
        }  # fmt: skip
        self.turns: dict[int, list[float]] = {}

    def take_turn(self, seconds: float) -> None:
        """Find what a row costs in batches of several sizes."""
        for size in BATCHES:
            feeds = {name: np.repeat(row, size, 0) for name, row in self.row.items()}
            self.turns.setdefault(size, []).append(self._row_us(feeds, size, seconds))

    def _row_us(self, feeds: dict[str, np.ndarray], size: int, seconds: float) -> float:
        counts: list[int] = []

        def work() -> None:
            until, count = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                self.session.run(None, feeds)
                count += size
            counts.append(count)

        threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
        before = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.process_time() - before) / sum(counts) * 1e6

    def text(self) -> str:
        """Return the medians."""
        cells = [f"{size}: {statistics.median(us):,.1f}" for size, us in self.turns.items()]
        return f"in process, CPU µs per row in batches of {', '.join(cells)}"


def take_turns(
    servers: list[Server],
    ceiling: InProcess,
    scripts: dict[str, Path],
    levels: list[int],
    rounds: int,
    seconds: float,
) -> None:
    """Load every server at every level, `rounds` times, in turns."""
    for number in range(rounds):
        ceiling.take_turn(seconds / len(BATCHES))
        for server in servers:
            if server.adapter.can_pause:
                server.signal(signal.SIGCONT)
            else:
                server.start()
            script = scripts[server.adapter.body]
            load(server, script, levels[0], 1)
            for level in levels:
                server.turns.setdefault(level, []).append(load(server, script, level, seconds))
            server.memory_mb = max(server.memory_mb, server.pss_mb())
            if server.adapter.can_pause:
                server.signal(signal.SIGSTOP)
            else:
                server.stop()
        print(f"round {number + 1} of {rounds}", file=sys.stderr)


def table(servers: list[Server], levels: list[int]) -> str:
    """Return the medians as a Markdown table."""
    heads = "".join(f" {level} conn: rps / CPU µs / p50 / p99 ms / errors |" for level in levels)
    lines = [f"| server |{heads} MB |", "|---" * (len(levels) + 2) + "|"]
    for server in servers:
        cells = []
        for level in levels:
            turns = server.turns[level]
            middle = {
                name: statistics.median(getattr(turn, name) for turn in turns)
                for name in ("rate", "cpu_us", "p50_ms", "p99_ms")
            }
            cells.append(
                f"{middle['rate']:,.0f} / {middle['cpu_us']:,.0f} / {middle['p50_ms']:.2f} / "
                f"{middle['p99_ms']:.1f} / {sum(turn.errors for turn in turns)}"
            )
        lines.append(f"| {server.adapter.name} | {' | '.join(cells)} | {server.memory_mb:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=",".join(re.sub(r",", ";", n) for n in ADAPTERS))
    parser.add_argument("--model", type=Path, help="an encoder as ONNX; default: the tiny model")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "fairlead-peers")
    parser.add_argument("--headers", type=Path, help="headers that build Triton's ONNX backend")
    parser.add_argument("--work", type=Path, default=Path("/tmp/fairlead-compare"))
    parser.add_argument("--json", type=Path, help="write every turn to this file")
    words = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed; Debian: apt-get install wrk")
    if words.headers:
        os.environ["BENCHMARK_HEADERS"] = str(words.headers.resolve())
    shutil.rmtree(words.work, ignore_errors=True)
    words.work.mkdir(parents=True)
    model = encoder(words.model, words.tokens) if words.model else tiny(words.work)
    levels = [int(level) for level in words.connections.split(",")]
    names = [name.replace(";", ",") for name in words.peers.split(",")]
    if len(model.inputs) > 1:
        names = [name for name in names if not ADAPTERS[name].options.get("one_input")]
    servers: list[Server] = []
    ceiling = InProcess(model)
    try:
        for server in prepared(names, model, words.work, words.cache):
            servers.append(server)
        scripts = bodies(model, words.work)
        take_turns(servers, ceiling, scripts, levels, words.rounds, words.seconds)
    finally:
        for server in servers:
            server.stop()
    print(table(servers, levels))
    print(ceiling.text())
    if words.json:
        found = {s.adapter.name: {str(k): [vars(t) for t in v] for k, v in s.turns.items()}
                 | {"memory_mb": s.memory_mb} for s in servers}  # fmt: skip
        words.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
