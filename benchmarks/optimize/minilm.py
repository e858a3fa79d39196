"""Quantize the MiniLM encoder with one command, beside what stock tools make of it.

    python benchmarks/optimize/minilm.py FOLDER [--exporter traced|dynamo] [--runtime any]
        [--shape 1x32] [--no-stock]

FOLDER holds what `minilm_export.py` wrote. Without OpenVINO in the environment its lines are left
out; NNCF's own line needs nncf as well. All versions are timed in one interleaved run on one
thread; speed is the minimum of the CPU time of ONNX Runtime in fp32 over that of the version.
Quality is that of the embeddings against those of the original, over the last 128 rows.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from fairlead.api.context import Context
from fairlead.api.optimizing import quantize
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.openvino import OpenVinoRunner, has_openvino
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import RuntimeSettings
from fairlead.measure.candidates import measure_candidates
from fairlead.measure.judging import nearest_neighbours
from fairlead.measure.quality import run_batches

BUDGET = 0.005
SHAPES = ((1, 32), (16, 128))
JUDGED = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exporter", default="traced", choices=("traced", "dynamo"))
    parser.add_argument("--no-stock", action="store_true", help="only fp32 and our own")
    parser.add_argument("--runtime", default="any", choices=("any", "onnxruntime", "openvino"))
    parser.add_argument("--shape", choices=[f"{b}x{n}" for b, n in SHAPES], help="one only")
    chosen = parser.parse_args()
    shapes = [(b, n) for b, n in SHAPES if chosen.shape in (None, f"{b}x{n}")]
    source = chosen.folder / f"minilm-{chosen.exporter}.onnx"
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        stock = {} if chosen.no_stock else stock_models(source, chosen.folder, Path(name))
        for batch, length in shapes:
            rows = dict(np.load(chosen.folder / f"rows-{length}.npz"))
            ours = ours_for(source, chosen.folder, Path(name), (batch, length), chosen.runtime)
            compare(source, {**stock, **ours}, rows, batch, length)


def ours_for(source, folder, scratch, shape, runtime):
    batch, length = shape
    outcome = quantize(
        str(source), str(folder / f"rows-{length}.npz"), out=scratch / f"ours-{length}",
        settings={"max_drop": BUDGET, "goal": "speed", "batch_rows": batch, "runtime": runtime,
                  "time_limit_s": 20.0},
        context=Context.open(home=scratch / "home"),
    )  # fmt: skip
    print(f"\n{batch} x {length}: {outcome.report.details['change']}")
    print(outcome.report.summary)
    print(f"full evaluations: {outcome.report.details['evaluations']} "
          f"and {outcome.report.details['confirmations']} on rows kept back")  # fmt: skip
    settings = outcome.noun.runtime.model_copy(update={"intra_op_threads": 1})
    return {"fairlead, one command": (outcome.noun.model_path.read_bytes(), settings)}


def stock_models(source: Path, folder: Path, scratch: Path):
    """Return name → (model, settings) of what the tools make by themselves."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )  # fmt: skip

    rows = dict(np.load(folder / "rows-128.npz"))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{k: v[i : i + 1] for k, v in rows.items()} for i in range(64)])

        def get_next(self):
            return next(self.left, None)

    one = RuntimeSettings(intra_op_threads=1)
    made = {}
    quantize_dynamic(source, scratch / "d.onnx", extra_options={"DefaultTensorType": 1})
    made["ORT dynamic, default"] = ((scratch / "d.onnx").read_bytes(), one)
    quantize_dynamic(
        source, scratch / "c.onnx", per_channel=True, weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": 1},
    )  # fmt: skip
    made["ORT dynamic, per channel"] = ((scratch / "c.onnx").read_bytes(), one)
    quantize_static(
        source, scratch / "s.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": 1},
    )  # fmt: skip
    made["ORT static, MatMul only"] = ((scratch / "s.onnx").read_bytes(), one)
    if has_openvino():
        for precision in ("fp32", "bf16"):
            settings = one.model_copy(
                update={"execution_provider": "OpenVINO", "float_precision": precision}
            )
            made[f"OpenVINO {precision}"] = (source.read_bytes(), settings)
        made.update(nncf_model(onnx.load(source), rows, scratch, settings))
    return made


def nncf_model(graph, rows, scratch, settings):
    os.environ["NNCF_CI"] = "1"  # keeps it from sending telemetry
    try:
        import nncf
    except ModuleNotFoundError:
        return {}
    import onnx

    items = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(128)]
    quantized = nncf.quantize(
        graph, nncf.Dataset(items), model_type=nncf.ModelType.TRANSFORMER, subset_size=128
    )
    onnx.save(quantized, scratch / "nncf.onnx")
    return {"NNCF PTQ on OpenVINO": ((scratch / "nncf.onnx").read_bytes(), settings)}


def compare(source, models, rows, batch, length) -> None:
    judged = {name: array[-JUDGED:] for name, array in rows.items()}
    runners = {"ORT fp32": OnnxRunner(source)}
    sizes = {"ORT fp32": source.stat().st_size}
    for name, (data, settings) in models.items():
        is_openvino = settings.execution_provider == "OpenVINO"
        runners[name] = (OpenVinoRunner if is_openvino else open_onnx)(data, settings)
        sizes[name] = len(data)
    vectors = {n: run_batches(r, judged, 16)["vector"] for n, r in runners.items()}
    found = measure_candidates(
        runners, rows, sizes=sizes, batch_rows=batch, blocks=40, time_limit_s=60
    )
    base, exact = found["ORT fp32"], vectors["ORT fp32"].astype(np.float64)
    print(f"\n{batch} x {length}")
    print("| version | MB | ms | times as fast | cosine | Spearman | top-1 neighbour |")
    print("|---|---|---|---|---|---|---|")
    for name, one in found.items():
        other = vectors[name].astype(np.float64)
        cosine = float(np.mean(np.sum(exact * other, axis=1)))
        same = float(np.mean(nearest_neighbours(exact) == nearest_neighbours(other)))
        print(
            f"| {name} | {one.size_bytes / 1e6:.1f} | {one.cpu_min_ms:.2f} "
            f"| {base.cpu_min_ms / one.cpu_min_ms:.2f} | {cosine:.4f} "
            f"| {spearman(exact, other):.4f} | {same:.2f} |"
        )


def spearman(exact, other) -> float:
    places = np.triu_indices(len(exact), 1)
    ranks = [np.argsort(np.argsort((v @ v.T)[places])) for v in (exact, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


if __name__ == "__main__":
    main()
