"""Goodput at the peak and at three times the peak: what is refused must not cost what is served.

    python benchmarks/serving/overload.py [--seconds 5] [--factor 3]

A model that takes some milliseconds per request, whatever the batch, so that the capacity is
known. First as many clients as keep it busy, then requests at a fixed rate, `factor` times what
was served, whether answers come or not. Good is an answer with status 200 within one second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.endpoint import spawn_server
from fairlead.core.bundle import BundleManifest, Provenance, RuntimeSettings, Scores, write_bundle
from fairlead.core.settings import Settings
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.workspace import Workspace
from fairlead.measure.profile import build_profile

PATIENCE_S = 1.0


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


async def once(link: tuple[asyncio.StreamReader, asyncio.StreamWriter], raw: bytes) -> int:
    reader, writer = link
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1])


async def closed(port: int, clients: int, seconds: float) -> float:
    until = time.perf_counter() + seconds
    done = 0

    async def client() -> None:
        nonlocal done
        link = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            done += await once(link, message()) == 200
        link[1].close()

    await asyncio.gather(*[client() for _ in range(clients)])
    return done / seconds


async def opened(port: int, rate: float, seconds: float) -> tuple[float, Counter[str]]:
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    found: Counter[str] = Counter()
    flying: set[asyncio.Task[None]] = set()

    async def request() -> None:
        started = time.perf_counter()
        link = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        status = await once(link, message())
        is_late = time.perf_counter() - started > PATIENCE_S
        found["late" if status == 200 and is_late else str(status)] += 1
        free.append(link)

    started = time.perf_counter()
    sent = 0
    while (passed := time.perf_counter() - started) < seconds:
        while sent < rate * passed:
            task = asyncio.ensure_future(request())
            flying.add(task)
            task.add_done_callback(flying.discard)
            sent += 1
        await asyncio.sleep(0.001)
    while flying:
        await asyncio.gather(*flying)
    return found["200"] / (time.perf_counter() - started), found


async def measure(port: int, seconds: float, factor: float) -> None:
    await closed(port, 4, 1.0)
    peak = await closed(port, 4, seconds)
    goodput, found = await opened(port, factor * peak, seconds)
    print(f"peak {peak:.0f} requests a second; at {factor:g} times that {goodput:.0f} good ones "
          f"({goodput / peak:.0%}): {dict(found)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--factor", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace = Workspace.open(Settings.load(home=root / "home"))
        settings = {"batching": "request-at-a-time", "max_queue_delay_ms": 200}
        bundle = heavy_bundle(root)
        with spawn_server(bundle, workspace=workspace, name="heavy", settings=settings) as server:
            port = int(server.endpoint.url.rsplit(":", 1)[1])
            asyncio.run(measure(port, options.seconds, options.factor))


if __name__ == "__main__":
    main()
