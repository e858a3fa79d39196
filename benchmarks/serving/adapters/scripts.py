"""Starts peers whose server is a Python file of the user's; the files are written here."""

from __future__ import annotations

from pathlib import Path

from adapters.base import Model

SESSION = """
import numpy as np
import onnxruntime as ort

DTYPES = {{"FP32": np.float32, "INT64": np.int64, "FP64": np.float64, "INT32": np.int32}}
INPUTS = {inputs!r}
OUTPUTS = {outputs!r}


def open_session():
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession({path!r}, options, providers=["CPUExecutionProvider"])
"""


def write(folder: Path, name: str, model: Model, text: str) -> Path:
    """Write `name` with the session code in front of `text` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    head = SESSION.format(
        path=str(model.path), inputs=dict(model.inputs), outputs=dict(model.outputs)
    )
    path = folder / name
    path.write_text(head + text)
    return path
