"""torch programs that ONNX cannot express, executed by torch itself."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.dataset import Array
from fairlead.core.errors import ModelError, UntrustedError
from fairlead.core.extras import requires
from fairlead.core.ports import Feeds
from fairlead.core.signature import Signature, conform

__all__ = ["TORCH_SUFFIXES", "TorchRunner", "load_torch"]

TORCH_SUFFIXES = frozenset({".pt", ".pt2"})
"""TorchScript, and programs of `torch.export`."""


def load_torch(path: Path, *, trust: bool) -> Any:  # noqa: ANN401 (untyped library)
    """Load TorchScript or an exported program as something to call with tensors.

    Raises:
        UntrustedError: `trust` is off; torch may run code that these files hold.
        ModelError: torch cannot load it.
        MissingExtraError: torch is not installed.
    """
    if not trust:
        raise UntrustedError(
            f"{path} is loaded by torch, which may run code that it holds",
            hint="add --trust if you know where the file comes from, or export it as ONNX",
        )
    with requires("torch", needed_by="running a torch program"):
        torch = importlib.import_module("torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".pt2":
                return torch.export.load(str(path)).module()
            return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as exc:
        raise ModelError(
            f"torch cannot load {path.name}: {_first_line(exc)}",
            hint="write it again with torch.jit.save or torch.export.save",
        ) from exc


class TorchRunner:
    """A torch program in memory; implements the port `Runner`."""

    def __init__(self, module: Any, signature: Signature) -> None:  # noqa: ANN401
        """Put a signature before a loaded program."""
        self._module = module
        self._signature = signature
        self._torch = importlib.import_module("torch")

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, batch dimension first."""
        return self._signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the program on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The program failed on this input.
        """
        ready = conform(feeds, self._signature)
        # torch takes no memory that it may not write to.
        tensors = [
            self._torch.from_numpy(np.array(ready[spec.name], order="C"))
            for spec in self._signature.inputs
        ]
        try:
            with self._torch.inference_mode():
                answer = self._module(*tensors)
        except Exception as exc:
            raise ModelError(
                f"the torch program failed on a batch: {_first_line(exc)}",
                hint="check the values and the shapes of the batch",
            ) from exc
        return {name: _as_array(value) for name, value in _named(answer).items()}

    def close(self) -> None:
        """Free the program."""
        self._module = None


def _named(answer: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, tuple | list):
        return {f"output_{place}": value for place, value in enumerate(answer)}
    return {"output": answer}


def _as_array(value: Any) -> Array:  # noqa: ANN401
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    if array.ndim == 0:
        raise ModelError(
            "the torch program gave one number for the whole batch",
            hint="export a module whose outputs have one row per row",
        )
    return array


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
