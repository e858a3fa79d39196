"""A trained model becomes a bundle: evaluated, profiled, digested."""

import sys
from pathlib import Path

from fairlead.api import pack

folder = Path(sys.argv[1])
outcome = pack(
    str(folder / "model.onnx"),
    data=str(folder / "holdout.parquet"),
    labels="label",
    out=folder / "example-baseline",
    name="digits",
)
bundle = outcome.noun
print(f"{bundle.name} {bundle.version}: {bundle.signature.inputs[0]}")
for score in bundle.scores.scores:
    print(f"  {score.metric} {score.value:.4f} [{score.ci_low:.4f}, {score.ci_high:.4f}]")
