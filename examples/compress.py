"""A model becomes smaller: factorised, thinned out or distilled, if held-back rows allow it."""

import sys
from pathlib import Path

from fairlead.api import compress

folder = Path(sys.argv[1])
outcome = compress(
    folder / "example-baseline",
    folder / "holdout.parquet",
    labels="label",
    out=folder / "example-compressed",
    settings={"max_drop": 0.02},
)
print(outcome.report.verdict, outcome.report.summary)
