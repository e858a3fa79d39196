"""Fairlead itself, with everything switched on, and once bare, to tell what that costs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from adapters.base import Adapter, Model, Started


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    from fairlead.api import Context, pack

    bundle = folder / "bundle"
    if not bundle.exists():
        context = Context.open(home=folder / "home")
        np.savez(folder / "rows.npz", **_rows(model))
        pack(
            str(model.path), data=str(folder / "rows.npz"), out=bundle, name=model.name,
            context=context,
        )  # fmt: skip
    words = [sys.executable, "-m", "fairlead", "serve", "start", str(bundle), "--http-port",
             str(port), *adapter.options.get("words", ())]  # fmt: skip
    base = f"http://127.0.0.1:{port}/v2"
    return Started(
        words, f"{base}/models/{model.name}/infer", f"{base}/health/ready",
        {"FAIRLEAD_HOME": str(folder / "home")},
    )  # fmt: skip


def _rows(model: Model) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(2)
    return {
        name: draw.integers(1, 2, (64, *shape)) if kind == "INT64"
        else draw.standard_normal((64, *shape)).astype(np.float32)
        for name, (kind, shape) in model.inputs.items()
    }  # fmt: skip


FAIRLEAD = Adapter("fairlead", prepare)
FAIRLEAD_BARE = Adapter(
    "fairlead, log and metrics off", prepare,
    options={"words": ("--set", "log_predictions=false", "--set", "metrics=false")},
)  # fmt: skip
FAIRLEAD_TWO = Adapter("fairlead, 2 workers", prepare, options={"words": ("--workers", "2")})
