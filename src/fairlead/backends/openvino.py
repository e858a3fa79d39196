"""ONNX models, executed by OpenVINO on the CPU."""

from __future__ import annotations

import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.onnxruntime import read_signature
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import Signature, conform

__all__ = [
    "OPENVINO",
    "OpenVinoRunner",
    "compile_options",
    "first_line",
    "has_openvino",
    "load_openvino",
]

OPENVINO = "OpenVINO"
"""The execution provider of a bundle that OpenVINO runs."""

_HINT = "choose another execution provider with `fairlead optimize tune`"
_TELEMETRY = "openvino_telemetry"


def has_openvino() -> bool:
    """Whether the library is installed; it is not loaded."""
    return find_spec("openvino") is not None


def load_openvino() -> Any:  # noqa: ANN401 (untyped library)
    """Import the library without its telemetry.

    Importing OpenVINO reports the use to its makers, even before a model is read. It does without
    that where its telemetry package is not installed, so it is told that it is not.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with requires("openvino", needed_by="running a model with OpenVINO"):
        if _TELEMETRY not in sys.modules:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        import openvino
    return openvino


def compile_options(settings: RuntimeSettings) -> dict[str, Any]:
    """Return OpenVINO's own names and values for settings."""
    # By itself OpenVINO computes in bf16 wherever the CPU can, without a word.
    precision = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[settings.float_precision]
    return {
        "INFERENCE_NUM_THREADS": settings.intra_op_threads or 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": False,
    }


class OpenVinoRunner:
    """An ONNX model compiled by OpenVINO; implements the port `Runner`."""

    def __init__(
        self,
        model: Path | bytes,
        settings: RuntimeSettings | None = None,
        signature: Signature | None = None,
    ) -> None:
        """Compile the model.

        Args:
            model: The ONNX file, or its bytes.
            settings: Threads and the precision of what stays in floating point; one thread and
                fp32 when None.
            signature: Names, dtypes and shapes; read by ONNX Runtime when None.

        Raises:
            ModelError: OpenVINO cannot read or compile the model.
            MissingExtraError: OpenVINO is not installed.
        """
        openvino = load_openvino()
        chosen = settings or RuntimeSettings(intra_op_threads=1)
        self._signature = signature or read_signature(model)
        try:
            core = openvino.Core()
            graph = core.read_model(model if isinstance(model, bytes) else str(model))
            self._compiled: Any = core.compile_model(graph, "CPU", compile_options(chosen))
        except Exception as exc:
            raise ModelError(
                f"OpenVINO cannot run the model: {first_line(exc)}", hint=_HINT
            ) from exc
        self._names = [spec.name for spec in self._signature.outputs]
        self._ports = [self._compiled.output(name) for name in self._names]
        self._local = threading.local()

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, batch dimension first; free dimensions are -1."""
        return self._signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the model on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The model failed on this input.
        """
        ready = conform(feeds, self._signature)
        if not self._has_rows(ready):
            # OpenVINO computes no empty tensors: one row of zeros tells the shape of the answer.
            one = {name: np.zeros((1, *a.shape[1:]), a.dtype) for name, a in ready.items()}
            return {name: array[:0] for name, array in self.run(one).items()}
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        request = self._local.request
        try:
            values = request.infer(ready, share_inputs=True)
        except Exception as exc:
            raise ModelError(
                f"the model failed on a batch: {first_line(exc)}",
                hint="check the values of the batch; run it through the model it was made from",
            ) from exc
        return {
            name: np.array(values[port])
            for name, port in zip(self._names, self._ports, strict=True)
        }

    def _has_rows(self, ready: Feeds) -> bool:
        specs = self._signature.inputs
        is_free = bool(specs) and all(spec.has_free_batch for spec in specs)
        return not is_free or any(len(ready[spec.name]) for spec in specs)

    def close(self) -> None:
        """Free the compiled model."""
        self._compiled, self._ports = None, []
        self._local = threading.local()


def first_line(error: Exception) -> str:
    """Return the line of an error of OpenVINO that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
