"""Threads and batch size, measured on this machine and obeyed by serving."""

import sys
from pathlib import Path

from fairlead.api import tune

folder = Path(sys.argv[1])
outcome = tune(
    folder / "example-baseline",
    folder / "holdout.parquet",
    labels="label",
    out=folder / "example-tuned",
)
print(outcome.noun.runtime)
for finding in outcome.report.findings:
    print(" ", finding.text)
