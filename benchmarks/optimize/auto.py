"""`fairlead optimize auto`, one command per model, beside every stock recipe, in one run.

    python benchmarks/optimize/auto.py [CASE …] [--minilm FOLDER] [--json FILE]

FOLDER holds what `minilm_export.py` wrote; without it MiniLM is left out. Needs
fairlead[sklearn,optimize]; torch for the network of convolutions; OpenVINO and nncf, where they
are installed, for their own recipes. All versions of a model answer the same batch in alternating
blocks on one thread; gain is the least CPU time of the model in fp32 on ONNX Runtime over that of
the version. Quality is judged on rows that no search saw, for all by the same judge. Stock recipes
come without a judge: whoever wants the best of them has to judge each, so that many evaluations
they take.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auto_cases import Case, cases
from stock_recipes import ONE, Stock, stock_versions

from fairlead.api.context import Context
from fairlead.api.optimizing_auto import optimize_auto
from fairlead.api.packing import pack
from fairlead.backends.datasets import load_dataset
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import bind
from fairlead.measure.budget import QualityDrop
from fairlead.measure.candidates import measure_candidates
from fairlead.measure.judging import Judge
from fairlead.measure.quality import run_batches

ORIGINAL, OURS = "ORT fp32", "fairlead, one command"
SERVED_ROWS = 32
BLOCKS = 40


@dataclass(frozen=True)
class Row:
    """One version in the table.

    Attributes:
        name: What it is.
        size: Bytes.
        ms: CPU time per call.
        gain: Times as fast as the original.
        drop: Drop of quality on fresh rows.
    """

    name: str
    size: int
    ms: float
    gain: float
    drop: QualityDrop

    @property
    def is_within(self) -> bool:
        """Whether it keeps the budget on fresh rows."""
        return math.isfinite(self.drop.value) and self.drop.value <= self.drop.budget


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    found = []
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        for case in cases(chosen.cases, folder, chosen.minilm):
            found.append(run(case, folder / case.name.replace(" ", "-").replace(",", "")))
    print("\n| model | best stock recipe within the budget | gain | fairlead | gain "
          "| drop / budget | passes over the rows, stock | fairlead |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for one in found:
        print("| {name} | {stock} | {stock_gain:.2f} | {winner} | {gain:.2f} | {drop:.4f} / "
              "{budget:g} | {stock_evaluations} | {evaluations:.1f} |".format(**one))  # fmt: skip
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


def run(case: Case, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    context = Context.open(home=folder / "home")
    bundle = pack(
        case.model, data=str(case.given), labels=case.labels, out=folder / "bundle",
        context=context,
    ).noun  # fmt: skip
    begun = time.process_time()
    outcome = optimize_auto(
        bundle.path, case.given, labels=case.labels, out=folder / "ours", context=context,
        settings={"max_drop": case.max_drop, "target": case.target},
    )  # fmt: skip
    spent = time.process_time() - begun
    print(f"\n## {case.name} (load {os.getloadavg()[0]:.1f})\n{outcome.report.summary}")
    for name, trial in outcome.report.details["trials"].items():
        print(f"- {name}: {trial['summary']}")
    versions, failed = stock_for(case, bundle, folder)
    ours = outcome.noun.runtime.model_copy(update={"intra_op_threads": 1})
    versions[OURS] = Stock(outcome.noun.model_path.read_bytes(), ours)
    rows = compare(case, bundle, versions)
    report(rows, failed)
    return summary(case, rows, outcome, spent, len(versions) - 1)


def stock_for(case: Case, bundle: Bundle, folder: Path) -> tuple[dict[str, Stock], dict[str, str]]:
    given = load_dataset(case.given, labels=case.labels)
    feeds = bind(given, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    return stock_versions(bundle.model_path, feeds, folder)


def compare(case: Case, bundle: Bundle, versions: dict[str, Stock]) -> list[Row]:
    fresh = load_dataset(case.fresh, labels=case.labels)
    feeds = bind(fresh, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    runners = {ORIGINAL: open_onnx(bundle.model_path, ONE)}
    sizes = {ORIGINAL: bundle.size_bytes}
    before = run_batches(runners[ORIGINAL], feeds, SERVED_ROWS)
    judge = Judge(bundle.manifest, case.max_drop)
    drops = {ORIGINAL: judge(before, before, fresh.labels)}
    for name, one in versions.items():
        try:
            runner = open_onnx(one.model, one.runtime, bundle.signature)
            drops[name] = judge(before, run_batches(runner, feeds, SERVED_ROWS), fresh.labels)
        except Exception as exc:  # noqa: BLE001 (a model that a tool made need not run)
            print(f"- {name} does not run: {str(exc).splitlines()[0][:150]}")
            continue
        runners[name], sizes[name] = runner, len(one.model)
    timed = measure_candidates(
        runners, feeds, sizes=sizes, batch_rows=case.batch_rows, blocks=BLOCKS, time_limit_s=60
    )
    first = timed[ORIGINAL].cpu_min_ms
    return [
        Row(name, sizes[name], one.cpu_min_ms, first / one.cpu_min_ms, drops[name])
        for name, one in timed.items()
    ]


def report(rows: list[Row], failed: dict[str, str]) -> None:
    print("\n| version | kB | CPU ms | times as fast | drop on fresh rows | within the budget |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.size / 1e3:.0f} | {row.ms:.4g} | {row.gain:.2f} "
            f"| {row.drop.value:+.4f} | {'yes' if row.is_within else 'NO'} |"
        )
    for name, why in failed.items():
        print(f"- {name}: nothing was made ({why[:150]})")


def summary(case: Case, rows: list[Row], outcome: Any, spent: float, judged: int) -> dict[str, Any]:
    ours = next(row for row in rows if row.name == OURS)
    stock = [row for row in rows if row.name not in (ORIGINAL, OURS) and row.is_within]
    best = max(stock, key=lambda row: row.gain, default=rows[0])
    if best.gain < 1:
        best = rows[0]
    details = outcome.report.details
    return {
        "name": case.name, "stock": best.name, "stock_gain": best.gain,
        "winner": details["winner"], "gain": ours.gain, "drop": ours.drop.value,
        "budget": case.max_drop, "within": ours.is_within, "stock_evaluations": judged,
        "evaluations": details["passes"], "cpu_s": spent, "load": os.getloadavg()[0],
    }  # fmt: skip


if __name__ == "__main__":
    main()
