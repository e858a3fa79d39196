"""Is this window like the reference? If not: which columns, and by how much."""

import sys
from pathlib import Path

from fairlead.api import monitor

folder = Path(sys.argv[1])
for name in ("holdout", "shifted"):
    signal = monitor(
        folder / "example-baseline", str(folder / f"{name}.parquet"), labels="label"
    ).noun
    worst = [f"{drift.column} ({drift.effect:.2f})" for drift in signal.drifted[:3]]
    print(f"{name}: {signal.kind}", *worst)
