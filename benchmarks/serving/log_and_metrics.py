"""Requests per second with the prediction log and metrics on and off, interleaved.

    python benchmarks/serving/log_and_metrics.py [--rounds 5] [--seconds 2] [--connections 16]

Two servers of one small model (64 floats in, 10 scores out) run side by side; raw sockets send
the same single-row JSON request over keep-alive connections to one of them at a time. What counts
is the CPU time that the server spends per request: it is stable on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.endpoint import ServerHandle, spawn_server
from fairlead.core.bundle import BundleManifest, Provenance, RuntimeSettings, Scores, write_bundle
from fairlead.core.settings import Settings
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.workspace import Workspace
from fairlead.measure.profile import build_profile

N_FEATURES, N_CLASSES = 64, 10


def tiny_bundle(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    parts = {
        "W1": rng.normal(size=(N_FEATURES, 64)),
        "W2": rng.normal(size=(64, N_CLASSES)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "W2"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", N_FEATURES])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", N_CLASSES]),
        ],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in parts.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    names = tuple(f"f{i}" for i in range(N_FEATURES))
    profile = build_profile({name: rng.normal(size=500) for name in names}, {}, "sha256:synthetic")
    bundle = write_bundle(
        folder / "tiny",
        fill=lambda target: onnx.save(model, target / "model.onnx"),
        manifest=BundleManifest(
            name="tiny",
            kind="onnx",
            model_file="model.onnx",
            task="classification",
            signature=Signature(
                inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, N_FEATURES)),),
                outputs=(
                    TensorSpec(name="label", dtype="int64", shape=(-1,)),
                    TensorSpec(name="scores", dtype="float32", shape=(-1, N_CLASSES)),
                ),
            ),
            feature_columns=names,
            classes=tuple(range(N_CLASSES)),
            prediction_output="label",
            score_output="scores",
        ),
        profile=profile,
        scores=Scores(),
        runtime=RuntimeSettings(intra_op_threads=1),
        provenance=Provenance(made_by="benchmark", source="synthetic", source_digest="sha256:0"),
    )
    return bundle.path


def request_bytes() -> bytes:
    row = np.random.default_rng(1).normal(size=N_FEATURES).round(4).tolist()
    item = {"name": "x", "datatype": "FP32", "shape": [1, N_FEATURES], "data": row}
    body = json.dumps({"inputs": [item]}).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def receive(link: socket.socket) -> bytes:
    answer = link.recv(65536)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += link.recv(65536)
    length = int(answer[:end].lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(answer) < end + 4 + length:
        answer += link.recv(65536)
    return answer


def send(port: int, message: bytes, until: float, counts: list[int]) -> None:
    done = 0
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.perf_counter() < until:
            link.sendall(message)
            answer = receive(link)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer[:300])
            done += 1
    counts.append(done)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def press(server: ServerHandle, message: bytes, seconds: float, n: int) -> tuple[float, float]:
    port = int(server.endpoint.url.rsplit(":", 1)[1])
    counts: list[int] = []
    before = cpu_s(server.process.pid)
    started = time.perf_counter()
    threads = [
        threading.Thread(target=send, args=(port, message, started + seconds, counts))
        for _ in range(n)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - started
    return sum(counts) / spent, (cpu_s(server.process.pid) - before) / sum(counts) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    variants = {
        "all on": {},
        "no log": {"log_predictions": False},
        "no log, no metrics": {"log_predictions": False, "metrics": False},
    }
    message = request_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = tiny_bundle(folder)
        servers = {}
        for place, (title, settings) in enumerate(variants.items()):
            workspace = Workspace.open(Settings.load(home=folder / str(place)))
            servers[title] = spawn_server(
                bundle, workspace=workspace, name="tiny", settings=settings
            )
        found: dict[str, list[tuple[float, float]]] = {title: [] for title in variants}
        for _ in range(options.rounds):
            for title, server in servers.items():
                found[title].append(press(server, message, options.seconds, options.connections))
        for server in servers.values():
            server.stop()
    base = statistics.median(cpu for _, cpu in found["no log, no metrics"])
    print(f"{options.connections} connections, median of {options.rounds} interleaved rounds")
    for title, values in found.items():
        rps, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{title:20} {rps:8.0f} rps {cpu:8.1f} CPU µs per request ({base / cpu:.1%} of none)")


if __name__ == "__main__":
    main()
