"""A convolutional network on digits: our pipeline beside the stock recipes, in one run.

    python benchmarks/optimize/cnn.py        (needs fairlead[torch,optimize] and scikit-learn)

The network of `digits_cnn.py` is distilled, pruned and quantized under a budget of half a point of
accuracy. All versions answer the same batch in alternating blocks on one thread; a version's time
is the least CPU time of a block, per call. Accuracy is that of the last rows, on which nothing
was chosen or trained.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from fairlead.api.context import Context
from fairlead.api.optimizing import compress
from fairlead.api.packing import pack
from fairlead.backends.datasets import load_dataset
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import Bundle
from fairlead.measure.candidates import measure_candidates
from fairlead.measure.quality import predict, row_scores

BUDGET = 0.005
CODE = "digits_cnn"
BATCHES = (1, 16, 64)


def stock(bundle: Bundle, folder: Path, images: np.ndarray) -> dict[str, Path]:
    """Make what ONNX Runtime's own tools make of the model."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = bundle.signature.inputs[0].name

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter([{name: images[i : i + 1]} for i in range(128)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

    source = str(bundle.model_path)
    prepared = str(folder / "prepared.onnx")
    try:
        quant_pre_process(source, prepared)
    except Exception as exc:  # noqa: BLE001 (it fails on some exports; then without)
        print(f"quant_pre_process failed ({type(exc).__name__}), so the recipes go without it")
        prepared = source
    dynamic, static = folder / "dynamic.onnx", folder / "static.onnx"
    q.quantize_dynamic(prepared, str(dynamic))
    q.quantize_static(
        prepared, str(static), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        weight_type=q.QuantType.QInt8,
    )  # fmt: skip
    return {"ORT dynamic INT8": dynamic, "ORT static INT8": static}


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        os.environ["DIGITS_CNN"] = str(folder / "weights.pt")
        sys.path.insert(0, str(Path(__file__).parent))
        import digits_cnn
        import torch

        torch.set_num_threads(1)
        rows_file = folder / "rows.npz"
        np.savez(rows_file, **digits_cnn.held_back())
        context = Context.open(home=folder / "home")
        code = str(Path(__file__).parent / f"{CODE}.py")
        bundle = pack(
            f"{code}:trained", data=str(rows_file), labels="label", out=folder / "cnn",
            context=context,
        ).noun  # fmt: skip
        outcome = compress(
            None, rows_file, labels="label", out=folder / "small", trust=True,
            model_factory=f"{code}:trained", train_data=f"{code}:loader", context=context,
            settings={"method": "pipeline", "max_drop": BUDGET, "epochs": 30, "stages": 3,
                      "max_ratio": 0.75, "batch_rows": 64},
        )  # fmt: skip
        print(outcome.report.summary)
        print(outcome.report.details.get("change"))
        rows = load_dataset(rows_file, labels="label")
        _, last = rows.split(0.5, seed=0)
        images = digits_cnn.digits()[0][:1200]
        paths = stock(bundle, folder, images)
        runners = {"original, ORT fp32": OnnxRunner(bundle.model_path)}
        runners |= {key: OnnxRunner(path) for key, path in paths.items()}
        single = outcome.noun.runtime.model_copy(update={"intra_op_threads": 1})
        runners["fairlead pipeline"] = open_onnx(outcome.noun.model_path, single)
        sizes = {key: path.stat().st_size for key, path in paths.items()}
        sizes |= {"original, ORT fp32": bundle.size_bytes}
        sizes |= {"fairlead pipeline": outcome.noun.size_bytes}
        report(bundle, runners, sizes, last)


def report(bundle: Bundle, runners: dict, sizes: dict[str, int], last) -> None:
    feeds = {bundle.signature.inputs[0].name: last.columns["image"]}
    right = {
        name: row_scores(bundle.manifest, predict(runner, bundle.manifest, last), last.labels)
        for name, runner in runners.items()
    }
    timed = {
        size: measure_candidates(runners, feeds, sizes=sizes, batch_rows=size, time_limit_s=20)
        for size in BATCHES
    }
    heads = " | ".join(f"batch {size}: ms (times)" for size in BATCHES)
    print(f"\n| version | kB | accuracy, {last.n_rows} rows | drop, points | {heads} |")
    print("|---|---|---|---|" + "---|" * len(BATCHES))
    first = next(iter(runners))
    for name in runners:
        cells = []
        for size in BATCHES:
            before, after = timed[size][first].cpu_min_ms, timed[size][name].cpu_min_ms
            cells.append(f"{after:.4f} ({before / after:.2f})")
        drop = 100 * float(right[first].mean() - right[name].mean())
        print(
            f"| {name} | {sizes[name] / 1e3:.0f} | {right[name].mean():.4f} | {drop:+.2f} "
            f"| {' | '.join(cells)} |"
        )


if __name__ == "__main__":
    main()
