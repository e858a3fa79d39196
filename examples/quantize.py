"""Fewer bytes or less time, refused when accuracy falls by more than the budget."""

import sys
from pathlib import Path

from fairlead.api import quantize

folder = Path(sys.argv[1])
outcome = quantize(
    folder / "example-baseline",
    folder / "holdout.parquet",
    labels="label",
    out=folder / "example-quantized",
    settings={"max_drop": 0.01},
)
print(outcome.report.verdict, outcome.report.summary)
