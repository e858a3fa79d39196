"""Where the model is worst: slices of a labelled set, tested so that noise yields none."""

import sys
from pathlib import Path

from fairlead.api import diagnose

folder = Path(sys.argv[1])
outcome = diagnose(folder / "example-baseline", str(folder / "shifted.parquet"), labels="label")
print(outcome.report.summary)
for table in outcome.report.tables[:1]:
    for row in table.rows[:3]:
        print(" ", row)
