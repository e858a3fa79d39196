"""Replicas for a rate and a latency, from measured service times."""

import sys
from pathlib import Path

from fairlead.api import scale

folder = Path(sys.argv[1])
outcome = scale(
    folder / "example-baseline",
    str(folder / "holdout.parquet"),
    labels="label",
    requests=300,
    settings={"target_rps": 500, "slo_p99_ms": 50, "requests": 5000},
)
print(outcome.report.summary)
