"""Opens the runner that executes a bundle."""

from __future__ import annotations

from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import UntrustedError
from fairlead.core.ports import Runner

__all__ = ["open_runner"]


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
    if bundle.manifest.needs_trust and not trust:
        raise UntrustedError(
            f"{bundle.path} holds a {bundle.manifest.kind} model whose loading runs its own code",
            hint="add --trust if you know where it comes from, or pack it as ONNX",
        )
    if bundle.manifest.kind == "onnx":
        from fairlead.backends.onnxruntime import OnnxRunner

        return OnnxRunner(bundle.model_path, runtime or bundle.runtime)
    from fairlead.backends.mlflow import PyfuncRunner

    return PyfuncRunner(bundle.model_path, bundle.signature, trust=trust)
