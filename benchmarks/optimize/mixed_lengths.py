"""Sentences of mixed lengths end to end: what padding costs, and what is left of it.

    python benchmarks/optimize/mixed_lengths.py FOLDER BUNDLE [--served]

FOLDER holds what `minilm_export.py` wrote, BUNDLE what `fairlead optimize auto` made of its model
for throughput. 192 sentences of Python's manual, six of them paragraphs, go through both models:
padded to 128 tokens, to the longest of a batch, and in buckets of like length as serving gathers
them. With `--served` the same sentences go as requests of one unpadded row each, 64 at a time,
through `fairlead serve`, and the server's CPU time counts, its HTTP and JSON included.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fairlead.api.context import Context
from fairlead.api.packing import pack
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.serve.inference.padding import bucket_of

SHORT, LONG, WIDTH, BATCH = 186, 6, 128, 32
ROUNDS = 3
AT_ONCE = 64


def sentences(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the rows, padded to 128 tokens, and the length of each."""
    short, long = (dict(np.load(folder / f"rows-{n}.npz")) for n in (32, WIDTH))
    order = np.random.default_rng(0).permutation(SHORT + LONG)
    rows = {}
    for name, array in short.items():
        wide = np.pad(array[:SHORT], ((0, 0), (0, WIDTH - array.shape[1])))
        rows[name] = np.concatenate([wide, long[name][:LONG]])[order]
    return rows, rows["attention_mask"].sum(1)


def plans(rows: dict[str, np.ndarray], lengths: np.ndarray) -> dict[str, list[dict]]:
    def cut(places, length):
        return {name: np.ascontiguousarray(a[places, :length]) for name, a in rows.items()}

    def batches(places):
        return [places[at : at + BATCH] for at in range(0, len(places), BATCH)]

    given = batches(np.arange(len(lengths)))
    buckets = np.array([bucket_of(int(length)) for length in lengths])
    alike = [part for one in np.unique(buckets) for part in batches(np.flatnonzero(buckets == one))]
    return {
        "padded to 128": [cut(part, WIDTH) for part in given],
        "to the longest of a batch": [cut(part, int(lengths[part].max())) for part in given],
        "in buckets": [cut(part, int(lengths[part].max())) for part in alike],
    }


def least(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least CPU time of each call, taken in turn."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            before = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--served", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    rows, lengths = sentences(chosen.folder)
    bundle = Bundle.open(chosen.bundle)
    single = bundle.runtime.model_copy(update={"intra_op_threads": 1})
    runners = {
        "fp32": OnnxRunner(chosen.folder / "minilm-traced.onnx"),
        "fairlead": open_runner(bundle, runtime=single),
    }
    print(f"{len(lengths)} sentences, {lengths.mean():.1f} tokens on average, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    calls = {
        (model, way): lambda r=runner, p=plan: [r.run(one) for one in p]
        for model, runner in runners.items()
        for way, plan in plans(rows, lengths).items()
    }
    found = least(calls, chosen.rounds)
    base = next(iter(found.values()))
    print("| model | batches | CPU s | times as fast |\n|---|---|---|---|")
    for (model, way), seconds in found.items():
        print(f"| {model} | {way} | {seconds:.3f} | {base / seconds:.1f} |", flush=True)
    if chosen.served:
        serve_both(chosen.folder, bundle, rows, lengths, chosen.rounds)


def serve_both(folder: Path, bundle: Bundle, rows, lengths, rounds: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as place:
        home = Path(place) / "home"
        data = Path(place) / "rows.npz"
        np.savez(data, **rows)
        original = pack(
            str(folder / "minilm-traced.onnx"), data=str(data), out=Path(place) / "fp32",
            context=Context.open(home=home),
        ).noun  # fmt: skip
        padded = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(len(lengths))]
        bare = [{k: v[i : i + 1, : lengths[i]] for k, v in rows.items()}
                for i in range(len(lengths))]  # fmt: skip
        base = served("fp32, padded to 128", original, padded, home, rounds, None)
        served("fairlead, unpadded", bundle, bare, home, rounds, base)


def served(name: str, bundle: Bundle, requests: list[dict], home: Path, rounds: int, base):
    """Return the server's least CPU time for all requests; the first round warms up."""
    from fairlead.backends.server_process import spawn_server

    workspace = Context.open(home=home).workspace
    patient = {"max_queue_delay_ms": 600_000.0}
    service = name.partition(",")[0]
    with spawn_server(bundle.path, workspace=workspace, name=service, settings=patient) as server:
        client, pid, spent = server.client(timeout_s=300), server.process.pid, []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in range(rounds + 1):
                before = cpu_seconds(pid)
                list(pool.map(client.infer, requests))
                spent.append(cpu_seconds(pid) - before)
    seconds = min(spent[1:])
    ratio = "" if base is None else f", {base / seconds:.1f} times as fast"
    print(f"served, {name}: {seconds:.3f} CPU s of the server{ratio}", flush=True)
    return seconds


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
