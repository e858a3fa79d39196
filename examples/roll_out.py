"""A canary between two bundles; the verdict stays valid however often it is looked at."""

import sys
from pathlib import Path

from fairlead.api import roll_out

folder = Path(sys.argv[1])
outcome = roll_out(
    folder / "example-baseline",
    folder / "example-quantized",
    str(folder / "holdout.parquet"),
    labels="label",
)
print(outcome.noun.action, outcome.noun.reason)
for guard in outcome.noun.guardrails:
    print(f"  {guard.metric}: harm {guard.harm_e_value:.3g}, safe {guard.safe_e_value:.3g}")
