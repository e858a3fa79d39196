"""Models run once in processes of their own: how much memory they take, what might kill them.

Peak memory of one model cannot be told inside a process that has held others. And some kernels end
the process on a batch without rows, which a caller must learn without dying of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.openvino import OPENVINO, load_openvino
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import FairleadError
from fairlead.core.files import scratch_folder
from fairlead.core.ports import Feeds
from fairlead.core.values import Value

__all__ = ["ModelProbe", "probe_models"]

_TIMEOUT_S = 300.0


class ModelProbe(Value):
    """What a process saw that loaded one model and ran it."""

    peak_memory_bytes: int | None = None
    """Most memory that loading and running took beyond the idle process; None: not told here."""
    takes_empty_batch: bool = False
    """Whether a batch without rows gets an answer without rows."""


def probe_models(
    models: Sequence[tuple[Path | bytes, RuntimeSettings]], feeds: Feeds
) -> tuple[ModelProbe | None, ...]:
    """Load and run each model in a process of its own.

    Args:
        models: ONNX files, or their bytes, and the settings they run with.
        feeds: One batch, one array per input; text inputs cannot be probed.

    Returns:
        What was seen of each, or None where the process could not run the batch.
    """
    nothing = (None,) * len(models)
    if not hasattr(os, "fork") or any(array.dtype.kind == "O" for array in feeds.values()):
        return nothing
    with scratch_folder("probe") as folder:
        items = []
        for place, (model, runtime) in enumerate(models):
            path = model if isinstance(model, Path) else folder / f"{place}.onnx"
            if isinstance(model, bytes):
                path.write_bytes(model)
            items.append({"model": str(path), "runtime": runtime.model_dump(mode="json")})
        names = list(feeds)
        arrays: dict[str, Any] = {f"a{i}": feeds[name] for i, name in enumerate(names)}
        np.savez(folder / "feeds.npz", **arrays)
        job = {"items": items, "feeds": str(folder / "feeds.npz"), "names": names}
        (folder / "job.json").write_text(json.dumps(job))
        return _run(folder / "job.json", len(models))


def _run(job: Path, n_models: int) -> tuple[ModelProbe | None, ...]:
    command = [sys.executable, "-m", __name__, str(job)]
    try:
        done = subprocess.run(  # noqa: S603 (our own module, no shell)
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (None,) * n_models
    found: dict[int, ModelProbe] = {}
    for line in done.stdout.splitlines():
        # A process that dies on the empty batch has said before what it needed until then.
        place, _, document = line.partition(" ")
        if place.isdigit() and document.startswith("{"):
            found[int(place)] = ModelProbe.model_validate_json(document)
    return tuple(found.get(place) for place in range(n_models))


def _peak_bytes() -> int | None:
    """Return the most memory this process ever held, where Linux tells."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("VmHWM")), "")
    return int(line.split()[1]) * 1024 if line else None


def _main(job_file: str) -> None:
    """Load the libraries once, then run every model in a fork of its own."""
    job = json.loads(Path(job_file).read_text())
    settings = [RuntimeSettings.model_validate(item["runtime"]) for item in job["items"]]
    __import__("onnxruntime")
    if any(one.execution_provider == OPENVINO for one in settings):
        load_openvino()
    for place, runtime in enumerate(settings):
        process = os.fork()
        if process == 0:
            try:
                _probe(place, Path(job["items"][place]["model"]), runtime, job)
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(process, 0)


def _probe(place: int, model: Path, runtime: RuntimeSettings, job: dict[str, Any]) -> None:
    from fairlead.backends.runners import open_onnx

    arrays = np.load(job["feeds"])
    feeds = {name: arrays[f"a{index}"] for index, name in enumerate(job["names"])}
    before = _peak_bytes()
    runner = open_onnx(model, runtime)
    runner.run(feeds)
    after = _peak_bytes()
    peak = None if before is None or after is None else max(after - before, 0)
    _say(place, ModelProbe(peak_memory_bytes=peak))
    try:
        answers = runner.run({name: array[:0] for name, array in feeds.items()})
    except FairleadError:
        return
    is_empty = all(array.ndim > 0 and len(array) == 0 for array in answers.values())
    _say(place, ModelProbe(peak_memory_bytes=peak, takes_empty_batch=is_empty))


def _say(place: int, found: ModelProbe) -> None:
    sys.stdout.write(f"{place} {found.model_dump_json()}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
