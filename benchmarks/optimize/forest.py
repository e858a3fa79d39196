"""A random forest of 200 trees, one row at a time: scikit-learn, the bundle, fewer trees.

    python benchmarks/optimize/forest.py       (needs fairlead[sklearn,optimize])

All versions answer the same row in alternating blocks; a version's time is the least CPU time of
a block, per call. Flips are rows of the held-back set whose predicted class differs from
scikit-learn's.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from fairlead.api.context import Context
from fairlead.api.optimizing import compress
from fairlead.api.packing import pack
from fairlead.backends.datasets import load_dataset, save_dataset
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.dataset import Dataset
from fairlead.measure.latency import measure_interleaved
from fairlead.measure.quality import predict, predicted

BUDGET = 0.01
TREES = 200


def main() -> None:
    warnings.simplefilter("ignore")
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].astype(np.float32), labels[order]
    forest = RandomForestClassifier(TREES, random_state=0, n_jobs=1).fit(
        images[:1200], labels[:1200]
    )
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as place:
        folder = Path(place)
        columns = {f"pixel_{i}": images[1200:, i] for i in range(64)}
        save_dataset(Dataset(columns, labels[1200:], "label"), folder / "rows.parquet")
        train = {f"pixel_{i}": images[:1200, i] for i in range(64)}
        save_dataset(Dataset(train, labels[:1200], "label"), folder / "train.parquet")
        import skops.io

        skops.io.dump(forest, folder / "forest.skops")
        context = Context.open(home=folder / "home")
        rows = str(folder / "rows.parquet")
        bundle = pack(
            str(folder / "forest.skops"), data=rows, labels="label", out=folder / "forest",
            context=context,
        ).noun  # fmt: skip
        made = {}
        for name, method, budget in (
            ("all trees, budget 0", "tree-selection", 0.0),
            ("tree-selection", "tree-selection", BUDGET),
            ("distillation", "distillation", BUDGET),
        ):
            outcome = compress(
                bundle.path, rows, out=folder / name, train_data=str(folder / "train.parquet"),
                settings={"method": method, "max_drop": budget}, context=context,
            )  # fmt: skip
            print(f"{name}: {outcome.report.summary}")
            if outcome.report.verdict == "done":
                made[name] = outcome.noun
        data = load_dataset(rows, labels="label")
        report(forest, {"bundle (ONNX)": bundle, **made}, data, images[1200:])


def report(forest, bundles: dict, data: Dataset, images: np.ndarray) -> None:
    runners = {name: OnnxRunner(bundle.model_path) for name, bundle in bundles.items()}
    row = images[:1]
    calls = {"scikit-learn": lambda: forest.predict(row)}
    for name, runner in runners.items():
        feeds = {runner.signature.inputs[0].name: row}
        calls[name] = lambda runner=runner, feeds=feeds: runner.run(feeds)
    timed = measure_interleaved(calls, rows_per_call=1, time_limit_s=30)
    truth, first = data.labels, forest.predict(images)
    before = timed["scikit-learn"].cpu_min_ms
    print("\n| version | kB | CPU ms, 1 row | times | accuracy | flips of 597 |")
    print("|---|---|---|---|---|---|")
    print(f"| scikit-learn | | {before:.3f} | 1 | {np.mean(first == truth):.4f} | 0 |")
    for name, runner in runners.items():
        answers = predict(runner, bundles[name].manifest, data)
        labels = predicted(bundles[name].manifest, answers)
        ms = timed[name].cpu_min_ms
        print(
            f"| {name} | {bundles[name].size_bytes / 1e3:.0f} | {ms:.4f} | {before / ms:.0f} "
            f"| {np.mean(labels == truth):.4f} | {int((labels != first).sum())} |"
        )


if __name__ == "__main__":
    main()
