"""A run with its code, packages and metrics, and a registered version that can be resolved."""

import sys
from pathlib import Path

from fairlead.api import list_runs, register, resolve, tracked

folder = Path(sys.argv[1])
with tracked(params={"hidden": 512}, inputs=[str(folder / "train.parquet")]) as run:
    run.log_metric("accuracy", 0.96)
latest = list_runs(limit=1)[0]
register(folder / "example-baseline", name="digits", run=latest.id, alias="champion")
print(latest.id, latest.status, resolve("digits@champion").digest)
