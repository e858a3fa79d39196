"""Goodput at the peak and at three times the peak: what is refused must not cost what is served.

    python benchmarks/serving/overload.py [--seconds 3] [--rounds 5] [--factor 3] [--pause-ms 1000]

A model that takes some milliseconds per request. Requests come at a fixed rate, whether answers
come or not. The peak is the largest goodput at any rate; then requests at the peak's rate and at
`factor` times that take turns, and their goodput is compared round by round. Good is an answer with
status 200 within one second.

Where client, server and others share their CPUs, goodput also tells of the others. So the good
answers per CPU second of the server are compared too: what refusing costs of the time to answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.endpoint import spawn_server
from fairlead.core.bundle import BundleManifest, Provenance, RuntimeSettings, Scores, write_bundle
from fairlead.core.settings import Settings
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.workspace import Workspace
from fairlead.measure.profile import build_profile

PATIENCE_S = 1.0
AT_A_TIME = "request-at-a-time"


def heavy_bundle(folder: Path, size: int = 256, rounds: int = 8) -> Path:
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
             helper.make_node("Mul", ["big", "m"], ["c0"])]  # fmt: skip
    nodes += [helper.make_node("MatMul", ["big", f"c{i}"], [f"c{i + 1}"]) for i in range(rounds)]
    nodes += [
        helper.make_node("ReduceSum", [f"c{rounds}"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.eye(size, dtype=np.float32), "big"),
         numpy_helper.from_array(np.array(0, np.float32), "zero"),
         numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    rows = np.random.default_rng(0).normal(size=(50, 4))
    profile = build_profile(dict(zip("abcd", rows.T, strict=True)), {}, "sha256:synthetic")
    return write_bundle(
        folder / "heavy",
        fill=lambda target: onnx.save(model, target / "model.onnx"),
        manifest=BundleManifest(
            name="heavy", kind="onnx", model_file="model.onnx", task="regression",
            signature=Signature(
                inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
                outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
            ),
            feature_columns=tuple("abcd"), prediction_output="y",
        ),
        profile=profile, scores=Scores(), runtime=RuntimeSettings(intra_op_threads=1),
        provenance=Provenance(made_by="benchmark", source="synthetic", source_digest="sha256:0"),
    ).path  # fmt: skip


def message() -> bytes:
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [item]}).encode()
    head = f"POST /v2/models/heavy/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Line(asyncio.Protocol):
    """One keep-alive connection with one request at a time; cheap, so that the client keeps up."""

    def __init__(self, free: list[Line], found: Counter[str]) -> None:
        self._free, self._found, self._rest = free, found, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._free.append(self)

    def ask(self, raw: bytes) -> None:
        self._started = time.perf_counter()
        self._transport.write(raw)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        end = data.find(b"\r\n\r\n") + 4
        at = data.lower().find(b"content-length: ") + 16
        if end < 4 or len(data) < end + int(data[at : data.index(b"\r", at)]):
            self._rest = data
            return
        self._rest = b""
        is_late = time.perf_counter() - self._started > PATIENCE_S
        status = data[9:12].decode()
        self._found["late" if status == "200" and is_late else status] += 1
        self._free.append(self)


async def opened(port: int, rate: float, seconds: float) -> tuple[float, Counter[str]]:
    """Send at a rate over as many connections as it takes; return goodput and all answers."""
    loop = asyncio.get_running_loop()
    lines: list[Line] = []
    free: list[Line] = []
    found: Counter[str] = Counter()
    raw = message()

    async def more(count: int) -> None:
        made = [loop.create_connection(lambda: Line(free, found), "127.0.0.1", port)
                for _ in range(count)]  # fmt: skip
        lines.extend(line for _, line in await asyncio.gather(*made))

    await more(min(2000, 20 + int(rate / 4)))
    started = time.perf_counter()
    sent = 0
    while (passed := time.perf_counter() - started) < seconds:
        while sent < rate * passed:
            if free:
                free.pop().ask(raw)
            else:
                found["no connection free"] += 1  # All of them wait for an answer.
            sent += 1
        await asyncio.sleep(0.002)
    end = time.perf_counter() + 10
    while len(free) < len(lines) and time.perf_counter() < end:
        await asyncio.sleep(0.01)
    found["never"] += len(lines) - len(free)
    for line in lines:
        line._transport.abort()
    return found["200"] / seconds, +found


async def find_peak(port: int, seconds: float) -> float:
    """Return the largest goodput at any rate: rates rise until more is refused than gained."""
    rate, best = 20.0, 0.0
    while True:
        goodput, _ = await opened(port, rate, seconds)
        if goodput < 0.7 * rate and goodput < 1.1 * best:
            return max(best, goodput)
        best = max(best, goodput)
        rate *= 1.5


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, options: argparse.Namespace) -> dict[str, object]:
    """Peak and overload take turns, because a machine that others use changes under one's hands."""
    peak = await find_peak(port, options.seconds)
    found = Counter[str]()

    async def round_at(rate: float) -> tuple[float, float, Counter[str]]:
        before = cpu_seconds(pid)
        goodput, counts = await opened(port, rate, options.seconds)
        spent = cpu_seconds(pid) - before
        return goodput, counts["200"] / max(spent, 0.01), counts

    peaks, ratios, per_cpu = [await round_at(0.9 * peak)], [], []
    for _ in range(options.rounds):
        goodput, thrift, counts = await round_at(options.factor * peak)
        peaks.append(await round_at(0.9 * peak))
        ratios.append(goodput / max(1.0, (peaks[-2][0] + peaks[-1][0]) / 2))
        per_cpu.append(thrift / max(1.0, (peaks[-2][1] + peaks[-1][1]) / 2))
        found += counts
    return {
        "peak_rps": peak, "factor": options.factor,
        "goodput_share": statistics.median(ratios), "shares": ratios,
        "per_cpu_share": statistics.median(per_cpu), "answers": dict(found),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--pause-ms", type=float, default=1000.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    said = {}
    print("| model | batching | peak rps | goodput | good per CPU s | of each round | answers |")
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for size, batching in ((256, AT_A_TIME), (96, AT_A_TIME), (256, "adaptive-batching")):
            root = Path(folder) / f"{size}-{batching}"
            workspace = Workspace.open(Settings.load(home=root / "home"))
            settings = {
                "batching": batching,
                "max_queue_delay_ms": 200,
                "refusal_pause_ms": options.pause_ms,
            }
            bundle = heavy_bundle(root, size)
            with spawn_server(
                bundle, workspace=workspace, name="heavy", settings=settings
            ) as server:
                port = int(server.endpoint.url.rsplit(":", 1)[1])
                found = uvloop.run(measure(port, server.process.pid, options))
            said[root.name] = found
            shares = " ".join(f"{share:.0%}" for share in found["shares"])
            print(f"| {size} | {batching} | {found['peak_rps']:.0f} | {found['goodput_share']:.0%} "
                  f"| {found['per_cpu_share']:.0%} | {shares} | {found['answers']} |",
                  flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
