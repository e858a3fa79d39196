"""What a gRPC call costs: Fairlead's whole call, and grpc.aio with no model behind it.

    python benchmarks/serving/grpc_floor.py --seconds 3 --rounds 3

Single rows of a 64 → 64 → 10 model from `h2load` (Debian: nghttp2-client); the servers are stopped
(SIGSTOP) while another has its turn. CPU is that of the server's processes. Needs grpcio; uvloop is
used by both. With `--other NAME=PORT=PID` further servers that run already join, for example
Triton with the model `tiny`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def save_model(path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 64), "b": (64, 10)}
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "b"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", 64), ("y", 10))
    ]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def save_body(path: Path) -> None:
    from fairlead.serve.inference.grpc.schema import schema

    request = schema().messages["inference.ModelInferRequest"](model_name="tiny")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 64])
    row = np.random.default_rng(0).random((1, 64)).astype(np.float32)
    request.raw_input_contents.append(row.tobytes())
    raw = request.SerializeToString()
    path.write_bytes(b"\0" + len(raw).to_bytes(4, "big") + raw)


def serve_floor(port: int) -> None:
    """grpc.aio: parse the request, look at the tensor, answer with ten numbers."""
    import grpc
    import uvloop

    from fairlead.serve.inference.grpc.schema import schema

    kinds = schema().messages
    request, response = kinds["inference.ModelInferRequest"], kinds["inference.ModelInferResponse"]

    async def infer(asked: object, _: object) -> object:
        row = np.frombuffer(asked.raw_input_contents[0], np.float32).reshape(1, 64)
        answer = response(model_name="tiny", model_version="1", id=asked.id)
        answer.outputs.add(name="y", datatype="FP32", shape=[len(row), 10])
        answer.raw_output_contents.append(bytes(40))
        return answer

    async def live() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            infer, request.FromString, response.SerializeToString
        )
        service = METHOD.split("/")[1]
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"ModelInfer": handler}),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await asyncio.Event().wait()

    uvloop.run(live())


def family(pid: int) -> list[int]:
    found = [pid]
    for entry in sorted(int(path.name) for path in Path("/proc").glob("[1-9]*")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent in found:
            found.append(entry)
    return found


def cpu_s(pid: int) -> float:
    ticks = 0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


def press(port: int, clients: int, streams: int, seconds: int, body: Path) -> int:
    words = ["h2load", "-D", str(seconds), "-c", str(clients), "-m", str(streams), "-d", str(body),
             "-H", "content-type: application/grpc", "-H", "te: trailers",
             f"http://127.0.0.1:{port}{METHOD}"]  # fmt: skip
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"(\d+) 2xx", said)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=50_100)
    parser.add_argument("--other", action="append", default=[], metavar="NAME=PORT=PID")
    parser.add_argument("--serve-floor", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_floor:
        serve_floor(options.port)
        return
    if shutil.which("h2load") is None:
        sys.exit("h2load is needed: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory() as name:
        measure(options, Path(name))


def measure(options: argparse.Namespace, folder: Path) -> None:
    save_model(folder / "tiny.onnx")
    save_body(folder / "body")
    env = {**os.environ, "FAIRLEAD_HOME": str(folder / "home")}
    rows = folder / "rows.npz"
    np.savez(rows, x=np.random.default_rng(1).random((64, 64)).astype(np.float32))
    bundle = folder / "bundle"
    own = [sys.executable, "-m", "fairlead"]
    pack = [*own, "pack", folder / "tiny.onnx", "-o", bundle, "--data", rows, "--name", "tiny"]
    subprocess.run(pack, env=env, check=True, capture_output=True)
    serve = [*own, "serve", "start", bundle, "--grpc-port", str(options.port), "--json"]
    floor = [sys.executable, __file__, "--serve-floor", "--port", str(options.port + 1)]
    children = [subprocess.Popen(serve, env=env, stdout=subprocess.PIPE), subprocess.Popen(floor)]
    json.loads(children[0].stdout.readline())
    time.sleep(2)
    servers = {
        "fairlead": (options.port, children[0].pid),
        "grpc.aio, no model": (options.port + 1, children[1].pid),
    }
    for text in options.other:
        other, port, pid = text.split("=")
        servers[other] = (int(port), int(pid))
    try:
        compare(servers, options, folder / "body")
    finally:
        for _, pid in servers.values():
            os.kill(pid, signal.SIGCONT)
        for child in children:
            child.terminate()
            child.wait(20)


def compare(servers: dict[str, tuple[int, int]], options: argparse.Namespace, body: Path) -> None:
    for _, pid in servers.values():
        os.kill(pid, signal.SIGSTOP)
    sys.stdout.write(f"{'server':<20} {'connections':>11} {'calls/s':>8} {'CPU µs':>7}\n")
    for clients, streams in ((1, 1), (16, 1), (64, 1), (1, 64)):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, (port, pid) in servers.items():
                os.kill(pid, signal.SIGCONT)
                before = cpu_s(pid)
                calls = press(port, clients, streams, options.seconds, body)
                spent = cpu_s(pid) - before
                os.kill(pid, signal.SIGSTOP)
                found[name].append((calls / options.seconds, spent / max(calls, 1) * 1e6))
        for name, turns in found.items():
            rate, cost = (statistics.median(values) for values in zip(*turns, strict=True))
            where = f"{clients} x {streams}"
            sys.stdout.write(f"{name:<20} {where:>11} {rate:8.0f} {cost:7.0f}\n")


if __name__ == "__main__":
    main()
