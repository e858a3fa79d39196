"""A model above 2 GiB through pack, quantize, tune and auto: what each takes and gives.

    python benchmarks/optimize/large.py --folder /somewhere/with/8/GiB

Builds a network with 2.0 GiB of float32 weights in external data, unless it is there already, and
runs every command in a process of its own. Prints verdict, bytes, seconds and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

_INPUTS, _CLASSES, _ROWS = 64, 10, 120


def main() -> None:
    """Build the model and run the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=["quantize", "tune", "auto"])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    model, rows = given.folder / "large.onnx", given.folder / "rows.npz"
    if not model.is_file():
        build(model, given.width, given.depth)
    np.savez(rows, x=np.random.default_rng(1).normal(0, 1, (_ROWS, _INPUTS)).astype(np.float32))
    bundle = given.folder / "bundle"
    if not bundle.is_dir():
        show("pack", ["pack", str(model), "--data", str(rows), "-o", str(bundle)], given.folder)
    limits = ["--data", str(rows), "--time-limit-s", "5"]
    steps = {
        "quantize": ["--max-drop", "0.02", "--method", "weight-int8"],
        "tune": ["--max-batch-size", "4"],
        "auto": ["--max-drop", "0.02", "--target", "size"],
    }
    for name in given.only:
        words = ["optimize", name, str(bundle), *limits, *steps[name]]
        out = given.folder / f"{name}-{time.time_ns()}"
        show(name, [*words, "-o", str(out)], given.folder)


def build(path: Path, width: int, depth: int) -> None:
    """Write a network of products and Relus, its weights beside the file."""
    rng = np.random.default_rng(0)
    tensors: list[Any] = []
    base = rng.standard_normal((512, width), dtype=np.float32) * (2 / width) ** 0.5
    with path.with_name(path.name + ".data").open("wb") as file:

        def put(name: str, blocks: list[np.ndarray], shape: tuple[int, int]) -> None:
            start = file.tell()
            for block in blocks:
                file.write(np.ascontiguousarray(block, np.float32).tobytes())
            tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.name + ".data", "offset": start}
            for key, value in {**place, "length": file.tell() - start}.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)

        put("first", [rng.normal(0, (2 / _INPUTS) ** 0.5, (_INPUTS, width))], (_INPUTS, width))
        for layer in range(depth):
            # One block, rolled: the numbers are random, the building takes seconds.
            rolled = [np.roll(base, 31 * layer + 7 * i, 1) for i in range(0, width, 512)]
            put(f"w{layer}", rolled, (width, width))
        put("last", [rng.normal(0, width**-0.5, (width, _CLASSES))], (width, _CLASSES))
    names = ["first", *(f"w{layer}" for layer in range(depth))]
    nodes, value = [], "x"
    for name in names:
        nodes.append(helper.make_node("MatMul", [value, name], [f"{name}_p"]))
        nodes.append(helper.make_node("Relu", [f"{name}_p"], [f"{name}_r"]))
        value = f"{name}_r"
    nodes.append(helper.make_node("MatMul", [value, "last"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", _CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())


def show(name: str, words: list[str], folder: Path) -> None:
    """Run one command and print what became of it."""
    home = {**os.environ, "FAIRLEAD_HOME": str(folder / "home")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", *words, "--json"],
        capture_output=True, text=True, env=home, check=False,
    )  # fmt: skip
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    text = done.stderr.strip().splitlines()[-1:] if done.returncode > 1 else []
    if done.stdout:
        document = json.loads(done.stdout)
        text = [document.get("report", document)["summary"]]
    print(f"{name}: exit {done.returncode}, {took:.0f} s, peak so far {peak:.1f} GiB")
    print("  ", *text)


if __name__ == "__main__":
    main()
