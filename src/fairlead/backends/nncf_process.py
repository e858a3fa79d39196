"""Post-training quantization by NNCF, in a process of its own that cannot reach the network.

NNCF reports its use to its makers. It is told what it offers against that (`NNCF_CI`, and that
its telemetry package is not installed), and its process refuses every connection besides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.openvino import load_openvino
from fairlead.core.errors import MissingExtraError, ModelError
from fairlead.core.files import scratch_folder
from fairlead.core.ports import Feeds, first_dimension

__all__ = ["has_nncf", "quantize_with_nncf"]

_TIMEOUT_S = 1800.0
_SWITCH = "NNCF_CI"


def has_nncf() -> bool:
    """Whether the library is installed; it is not loaded."""
    return find_spec("nncf") is not None


def quantize_with_nncf(
    model: bytes, rows: Feeds, *, is_transformer: bool, is_symmetric: bool
) -> bytes:
    """Quantize weights and activations of an ONNX model after training.

    Args:
        model: The model in float.
        rows: Calibration rows, one array per input; none may be text.
        is_transformer: Whether the patterns of transformers are looked for, with smoothing.
        is_symmetric: Whether zero lies in the middle of an activation's levels.

    Returns:
        The model with pairs of QuantizeLinear and DequantizeLinear.

    Raises:
        ModelError: NNCF cannot quantize the model.
        MissingExtraError: It is not installed.
    """
    if not has_nncf():
        raise MissingExtraError(
            "quantizing with NNCF needs `nncf`, which is not installed",
            hint="pip install 'fairlead[nncf]'",
        )
    with scratch_folder("nncf") as folder:
        (folder / "model.onnx").write_bytes(model)
        names = list(rows)
        arrays: dict[str, Any] = {f"a{i}": rows[name] for i, name in enumerate(names)}
        np.savez(folder / "rows.npz", **arrays)
        job = {"names": names, "is_transformer": is_transformer, "is_symmetric": is_symmetric}
        (folder / "job.json").write_text(json.dumps(job))
        why = _run(folder)
        made = folder / "quantized.onnx"
        if not made.is_file():
            raise ModelError(
                f"NNCF cannot quantize the model: {why}",
                hint="use static-int8 or smoothquant, which need nothing but ONNX",
            )
        return made.read_bytes()


def _run(folder: Path) -> str:
    """Run the child; returns the last line it wrote when it failed."""
    command = [sys.executable, "-m", __name__, str(folder)]
    try:
        done = subprocess.run(  # noqa: S603 (our own module, no shell)
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"its process ended with {done.returncode}"


def _refuse_connections(event: str, details: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise PermissionError(f"no connections while NNCF runs: {event} {details[-1]}")


def _main(folder: Path) -> None:
    """Quantize `model.onnx` of a folder into `quantized.onnx`."""
    sys.addaudithook(_refuse_connections)
    os.environ[_SWITCH] = "1"
    load_openvino()
    import nncf
    import onnx

    job = json.loads((folder / "job.json").read_text())
    stored = np.load(folder / "rows.npz")
    rows = {name: stored[f"a{place}"] for place, name in enumerate(job["names"])}
    made = nncf.quantize(
        onnx.load(str(folder / "model.onnx")),
        nncf.Dataset(_single(rows)),
        model_type=nncf.ModelType.TRANSFORMER if job["is_transformer"] else None,
        preset=nncf.QuantizationPreset.PERFORMANCE if job["is_symmetric"] else None,
        subset_size=first_dimension(rows),
    )
    onnx.save(made, str(folder / "part.onnx"))
    (folder / "part.onnx").replace(folder / "quantized.onnx")


def _single(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    n_rows = first_dimension(rows)
    return [{name: array[i : i + 1] for name, array in rows.items()} for i in range(n_rows)]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
