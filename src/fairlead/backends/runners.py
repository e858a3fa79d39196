"""Opens the runner that executes a bundle."""

from __future__ import annotations

from pathlib import Path

from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import UntrustedError
from fairlead.core.ports import Runner
from fairlead.core.signature import Signature

__all__ = ["open_onnx", "open_runner"]


def open_runner(
    bundle: Bundle, *, runtime: RuntimeSettings | None = None, trust: bool = False
) -> Runner:
    """Load the model of a bundle.

    Args:
        bundle: The package.
        runtime: Settings to use instead of the bundle's own.
        trust: Whether code and pickles that came with the model may run.

    Raises:
        UntrustedError: Loading would run code, and `trust` is off.
        ModelError: The model cannot be loaded.
        MissingExtraError: The library that runs it is not installed.
    """
    # What a bundle says of itself does not decide: code in it is code, whatever it says.
    runs_code = bundle.manifest.needs_trust or bundle.manifest.kind == "python"
    if runs_code and not trust:
        raise UntrustedError(
            f"loading {bundle.path}, a model of kind `{bundle.manifest.kind}`, runs its own code",
            hint="add --trust if you know where it comes from, or pack it as ONNX",
        )
    if bundle.manifest.kind == "onnx":
        return open_onnx(bundle.model_path, runtime or bundle.runtime, bundle.signature)
    if bundle.manifest.kind == "python":
        return _open_python(bundle, runtime or bundle.runtime)
    if bundle.manifest.kind == "ensemble":
        from fairlead.backends.ensembles import EnsembleRunner

        def open_step(part: Bundle, settings: RuntimeSettings) -> Runner:
            return open_runner(part, runtime=settings, trust=trust)

        return EnsembleRunner(bundle, open_step, runtime=runtime)
    from fairlead.backends.mlflow import PyfuncRunner

    return PyfuncRunner(
        bundle.model_path, bundle.signature, trust=trust, runtime=runtime or bundle.runtime
    )


def _open_python(bundle: Bundle, runtime: RuntimeSettings) -> Runner:
    from fairlead.backends.python_runner import (
        CODE_FOLDER,
        INCLUDED_FOLDER,
        CodeObject,
        ModelContext,
        PythonRunner,
    )

    context = ModelContext(bundle.path / INCLUDED_FOLDER, runtime.intra_op_threads or 1)
    made = CodeObject(bundle.path / CODE_FOLDER, bundle.manifest.entry or "", context)
    return PythonRunner(made, bundle.signature)


def open_onnx(
    model: Path | bytes, runtime: RuntimeSettings, signature: Signature | None = None
) -> Runner:
    """Load an ONNX model into the library that its settings name.

    Args:
        model: The file, or its bytes.
        runtime: Settings; their execution provider says which library runs it.
        signature: What the model takes and gives, where it is known already.

    Raises:
        ModelError: The model cannot be loaded, or the provider is not present.
        MissingExtraError: The library that runs it is not installed.
    """
    from fairlead.backends.openvino import OPENVINO

    if runtime.execution_provider == OPENVINO:
        from fairlead.backends.openvino import OpenVinoRunner

        return OpenVinoRunner(model, runtime, signature)
    from fairlead.backends.onnxruntime import OnnxRunner

    return OnnxRunner(model, runtime)
