"""ONNX models, executed by ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import STRING, Signature, TensorSpec, conform

__all__ = ["OnnxRunner", "available_providers", "read_signature", "signature_of"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(string)": STRING,
}
# What ONNX Runtime puts before its reason: its own code, a path, and the C++ function.
_ORIGIN = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(/\S+:\d+ .*?\) )?"
)


def available_providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime, the preferred one first.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    with requires("onnx", needed_by="running a model"):
        import onnxruntime as ort
    return tuple(ort.get_available_providers())


class OnnxRunner:
    """An ONNX model in memory; implements the port `Runner`."""

    def __init__(self, model: Path | bytes, settings: RuntimeSettings | None = None) -> None:
        """Load the model.

        Args:
            model: The file, or its bytes.
            settings: Threads, provider and optimisation level; one thread when None.

        Raises:
            ModelError: The model cannot be read, or needs an operator or provider that is missing.
            MissingExtraError: ONNX Runtime is not installed.
        """
        chosen = settings or RuntimeSettings(intra_op_threads=1)
        self._session = _load(model, chosen)
        self._signature = signature_of(self._session)
        self._names = [spec.name for spec in self._signature.outputs]
        self._binds = chosen.io_binding and _can_bind(self._signature)

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
        try:
            if self._binds:
                values = self._run_bound(ready)
            else:
                values = self._session.run(self._names, ready)
        except Exception as exc:
            raise ModelError(
                f"the model failed on a batch: {_first_line(exc)}",
                hint="check the values of the batch; run it through the model it was made from",
            ) from exc
        return dict(zip(self._names, values, strict=True))

    def _run_bound(self, ready: Feeds) -> list[Array]:
        binding = self._session.io_binding()
        for name, array in ready.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _can_bind(signature: Signature) -> bool:
    """Whether numpy arrays can be bound: text and bfloat16 cannot."""
    kinds = {spec.dtype for spec in (*signature.inputs, *signature.outputs)}
    return not kinds & {STRING, "bfloat16"}


def read_signature(model: Path | bytes) -> Signature:
    """Load a model only to read its signature.

    Raises:
        ModelError: The model cannot be read.
    """
    runner = OnnxRunner(model)
    try:
        return runner.signature
    finally:
        runner.close()


def _load(model: Path | bytes, settings: RuntimeSettings) -> Any:  # noqa: ANN401 (untyped library)
    with requires("onnx", needed_by="running a model"):
        import onnxruntime as ort
    if settings.execution_provider not in ort.get_available_providers():
        raise ModelError(
            f"execution provider {settings.execution_provider} is not present; "
            f"found {', '.join(ort.get_available_providers())}",
            hint="tune again on this machine with `fairlead optimize tune`",
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = settings.intra_op_threads or 1
    options.inter_op_num_threads = settings.inter_op_threads
    options.enable_cpu_mem_arena = settings.use_arena
    options.graph_optimization_level = {
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[settings.graph_optimization]
    spinning = "1" if settings.allow_spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=[settings.execution_provider])
    except Exception as exc:
        where = "the model" if isinstance(model, bytes) else model.name
        raise ModelError(
            f"{where} cannot be loaded: {_first_line(exc)}",
            hint="check it with `python -m onnx.checker`, or export it again",
        ) from exc


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return _ORIGIN.sub("", text.splitlines()[0])[:300]


def signature_of(session: Any) -> Signature:  # noqa: ANN401 (untyped library)
    """Return what the model of a session takes and gives.

    Raises:
        ModelError: An input or output is no tensor.
    """
    return Signature(
        inputs=tuple(_spec(item) for item in session.get_inputs()),
        outputs=tuple(_spec(item) for item in session.get_outputs()),
    )


def _spec(item: Any) -> TensorSpec:  # noqa: ANN401 (untyped library)
    kind = str(item.type)
    if not kind.startswith("tensor("):
        raise ModelError(
            f"`{item.name}` is a {kind}, and only tensors can be served",
            hint="export the model with tensors only (skl2onnx: options={'zipmap': False})",
        )
    dtype = _DTYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
    if dtype != STRING and dtype != "bfloat16":
        np.dtype(dtype)
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape)
    return TensorSpec(name=item.name, dtype=dtype, shape=shape)
