"""Quantize, compress and tune a digits classifier, and print what came of it.

    python benchmarks/optimize/digits.py

Every number is from this run: quality on rows that the model was not trained on, speed in CPU
time of alternating blocks on one thread.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fairlead.api.context import Context
from fairlead.api.demo import prepare_demo
from fairlead.api.optimizing import compress, quantize, tune
from fairlead.api.packing import pack

BUDGET = 0.01
WIDE_BUDGET = 0.05


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        prepare_demo(folder / "demo")
        context = Context.open(home=folder / "home")
        rows = str(folder / "demo" / "holdout.parquet")
        model = str(folder / "demo" / "model.onnx")
        bundle = pack(
            model, data=rows, labels="label", out=folder / "baseline", name="digits",
            context=context,
        ).noun  # fmt: skip
        print("| change | verdict | MB ratio | speed, 1 row | speed, 64 rows | drop (95 % bound) |")
        print("|---|---|---|---|---|---|")
        for label, verb, budget in (
            ("dynamic-int8", quantize, BUDGET),
            ("low-rank", compress, BUDGET),
            ("low-rank, wide budget", compress, WIDE_BUDGET),
        ):
            found = []
            for batch_rows in (1, 64):
                outcome = verb(
                    bundle.path, rows, labels="label", out=folder / f"{label}-{batch_rows}",
                    settings={"max_drop": budget, "batch_rows": batch_rows}, context=context,
                )  # fmt: skip
                found.append({m.name: m for m in outcome.report.measures})
            one, many = found
            size, drop = one["size_bytes"], one["accuracy_drop_ratio"]
            speeds = [f"{s.value:.2f} ({s.ci_low:.2f}-{s.ci_high:.2f})" for s in (
                one["speedup_ratio"], many["speedup_ratio"])]  # fmt: skip
            print(
                f"| {label}, budget {budget} | {outcome.report.verdict} "
                f"| {size.value / (size.baseline or 1):.2f} | {speeds[0]} | {speeds[1]} "
                f"| {drop.value:.4f} ({drop.ci_high:.4f}) |"
            )
        outcome = tune(bundle.path, rows, out=folder / "tuned", context=context)
        print(f"\n{outcome.report.summary}")


if __name__ == "__main__":
    main()
