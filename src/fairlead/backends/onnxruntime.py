"""ONNX models, executed by ONNX Runtime."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.bfloat16 import BFLOAT16
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import STRING, Signature, TensorSpec, conform

__all__ = [
    "TENSORRT",
    "OnnxRunner",
    "available_providers",
    "provider_options",
    "read_signature",
    "signature_of",
]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": BFLOAT16,
    "tensor(string)": STRING,
}
_ONNX_BFLOAT16 = 16
"""The element type in ONNX's numbering."""
TENSORRT = "TensorrtExecutionProvider"
_CUDA = "CUDAExecutionProvider"

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
        inputs = self._signature.inputs
        self._only = inputs[0] if len(inputs) == 1 else None
        self._dtype = inputs[0].numpy_dtype if inputs else None
        self._has_halves = _has_halves(self._signature)
        self._binds = chosen.io_binding and not self._has_halves and _can_bind(self._signature)

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
        ready = feeds if self._fits(feeds) else conform(feeds, self._signature)
        try:
            if self._binds:
                values = self._run_bound(ready)
            elif self._has_halves:
                values = self._run_with_halves(ready)
            else:
                values = self._session.run(self._names, ready)
        except Exception as exc:
            raise ModelError(
                f"the model failed on a batch: {_first_line(exc)}",
                hint="check the values of the batch; run it through the model it was made from",
            ) from exc
        return dict(zip(self._names, values, strict=True))

    def _fits(self, feeds: Feeds) -> bool:
        """Say of a model with one input, in little time, whether it may be run as it is."""
        only = self._only
        if only is None or len(feeds) != 1 or not isinstance(feeds, dict):
            return False
        array = feeds.get(only.name)
        if array is None or array.dtype != self._dtype or array.ndim != len(only.shape):
            return False
        return not only.shape or (only.shape[0] == -1 and array.shape[1:] == only.shape[1:])

    def _run_bound(self, ready: Feeds) -> list[Array]:
        binding = self._session.io_binding()
        for name, array in ready.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def _run_with_halves(self, ready: Feeds) -> list[Array]:
        """Run a model of bfloat16 tensors, which numpy cannot hold: their bits go in and out."""
        import onnxruntime as ort

        # What is read in place must stay where it is until the run has ended.
        arrays = {name: np.ascontiguousarray(array) for name, array in ready.items()}
        halves = {spec.name for spec in self._signature.inputs if spec.dtype == BFLOAT16}
        given: dict[str, Any] = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            if name in halves
            else array
            for name, array in arrays.items()
        }
        outputs = self._signature.outputs
        if all(spec.dtype != BFLOAT16 for spec in outputs):
            return list(self._session.run(self._names, given))
        for name in given.keys() - halves:
            given[name] = ort.OrtValue.ortvalue_from_numpy(given[name])
        found = self._session.run_with_ort_values(self._names, given)
        return [
            _bits_in(value) if spec.dtype == BFLOAT16 else value.numpy()
            for spec, value in zip(outputs, found, strict=True)
        ]

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _can_bind(signature: Signature) -> bool:
    """Whether numpy arrays can be bound: text cannot."""
    return all(spec.dtype != STRING for spec in (*signature.inputs, *signature.outputs))


def _has_halves(signature: Signature) -> bool:
    """Whether a tensor is bfloat16.

    Raises:
        ModelError: The model takes text and gives bfloat16: ONNX Runtime reads the one and gives
            the other only by ways that exclude one another.
    """
    takes, gives = ({spec.dtype for spec in s} for s in (signature.inputs, signature.outputs))
    if STRING in takes and BFLOAT16 in gives:
        raise ModelError(
            "the model takes text and gives bfloat16, which ONNX Runtime cannot do from Python",
            hint="end the model with a Cast to float32",
        )
    return BFLOAT16 in takes | gives


def _bits_in(value: Any) -> Array:  # noqa: ANN401 (untyped library)
    """Copy the bits out of a bfloat16 tensor of ONNX Runtime on the CPU."""
    shape = tuple(value.shape())
    size = math.prod(shape)
    if not size:
        return np.zeros(shape, np.uint16)
    memory = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    return np.frombuffer(memory, np.uint16).reshape(shape).copy()


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
    providers: list[Any] = [(settings.execution_provider, provider_options(settings))]
    if settings.execution_provider == TENSORRT and _CUDA in ort.get_available_providers():
        providers.append(_CUDA)  # for the operators that TensorRT does not know
    try:
        session = ort.InferenceSession(source, options, providers=providers)
    except Exception as exc:
        where = "the model" if isinstance(model, bytes) else model.name
        raise ModelError(
            f"{where} cannot be loaded: {_first_line(exc)}",
            hint="check it with `python -m onnx.checker`, or export it again",
        ) from exc
    if settings.execution_provider not in session.get_providers():
        # ONNX Runtime goes on with the CPU when a driver or a library is missing.
        raise ModelError(
            f"execution provider {settings.execution_provider} could not be started; "
            f"{', '.join(session.get_providers())} would run the model instead",
            hint="check its driver and libraries, or use --device cpu",
        )
    return session


def provider_options(settings: RuntimeSettings) -> dict[str, str]:
    """Return the options that make a provider compute in the precision of the settings, or better.

    CUDA rounds the inputs of fp32 products to 10 bits (TF32) unless it is told not to, and TensorRT
    uses 16 bits only where it is told that it may.
    """
    name, precision = settings.execution_provider, settings.float_precision
    if name.startswith("CUDA"):
        return {"use_tf32": str(int(precision != "fp32"))}
    if name.startswith("Tensorrt"):
        return {f"trt_{kind}_enable": str(int(precision == kind)) for kind in ("fp16", "bf16")}
    return {}


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
    if dtype not in (STRING, BFLOAT16):
        np.dtype(dtype)
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape)
    return TensorSpec(name=item.name, dtype=dtype, shape=shape)
